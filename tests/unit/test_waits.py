"""A micro-batch asks the device for no value, which on a GPU would wait for all that is queued; tensors of the CPU stand in."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.structures import tiny_layout
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model import loss
from ttt_dist.model.cross_entropy import VocabularySlice, by_chunks
from ttt_dist.model.layers import LocalLayerFactory
from ttt_dist.model.loss import linear_cross_entropy, loss_rows
from ttt_dist.parallel.pipeline import LastLayer, LossTotal, pack_batch
from ttt_dist.sequence.batch import Batch, TargetIndices, collate
from ttt_dist.sequence.corruption import Corrupted, corrupt
from ttt_dist.sequence.sample import Sample

LAYOUT = tiny_layout()
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal")


class NoWait(TorchDispatchMode):
    """Refuses operators whose result the host has to know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def batch_of(ids: list[int]) -> Batch:
    sample = Sample.from_arrays(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))
    return collate([[sample]], LAYOUT, Objective(p_mix=1.0), 0, [0], len(ids) + 2)


def test_the_loss_of_a_batch_with_its_targets_found_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([1, 2, 3, 4])
    batch.target_indices = TargetIndices.of(batch)
    monkeypatch.setattr(loss, "by_tiles", by_chunks)  # what CUDA takes
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    hidden = torch.randn(batch.input_ids.numel(), 5, requires_grad=True)
    weight = torch.randn(LAYOUT.padded_vocab_size, 5, requires_grad=True)
    with NoWait():
        rows = loss_rows(batch, slice(None))
        sums = linear_cross_entropy(hidden[rows.rows], weight, rows, VocabularySlice(0, LAYOUT.vocab_size))
        sums.metric_sums()
        sums.loss.backward()
    assert len(rows.rows)
    assert hidden.grad is not None
    assert hidden.grad.any()


def test_the_last_stage_of_a_pipeline_looks_for_targets_on_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch_of([1, 2, 3, 4]), batch_of([4, 3])]
    expected = []
    for batch in batches:
        batch.target_indices = TargetIndices.of(batch)
        expected.append(batch.ar_tokens)
    monkeypatch.setattr(
        TargetIndices, "of", lambda batch: pytest.fail("a batch that came over the pipe was looked into")
    )
    total, config = (
        LossTotal(),
        ModelConfig(hidden_size=4, num_layers=1, num_heads=1, num_kv_heads=1, ffn_hidden_size=4),
    )
    end = LastLayer(config, LAYOUT, LocalLayerFactory(), total)
    seen: list[int] = []
    end.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[1].kinds["ar"].stop))
    total.begin(batches)
    for batch in batches:
        end((torch.randn(batch.input_ids.numel(), 4), pack_batch(batch)))
    assert seen == expected == [3, 1]


def test_targets_within_slices_are_all_targets_once() -> None:
    batch = batch_of([1, 2, 3, 4, 5, 6])
    ar, nar = batch.ar_weights.flatten(), batch.nar_weights.flatten()
    indices = TargetIndices.of(batch)
    for size in (1, 3, 100):
        for start in range(0, len(ar), size):
            tokens = slice(start, start + size)
            for found, weights in zip(indices.within(tokens).values(), (ar, nar), strict=True):
                assert torch.equal(found, weights[tokens].nonzero().squeeze(1))
    assert len(indices.within(slice(None))["ar"]) == batch.ar_tokens > 1


@pytest.mark.parametrize("target", [-1, LAYOUT.vocab_size])
def test_a_batch_is_not_made_of_targets_outside_the_vocabulary(target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at on the CPU: on a GPU a look would wait, and an index out of range ends the process."""

    def spoilt(*arguments: Any) -> Corrupted:
        part = corrupt(*arguments)
        part.ar_targets[part.ar_weights != 0] = target
        return part

    monkeypatch.setattr("ttt_dist.sequence.batch.corrupt", spoilt)
    with pytest.raises(ValueError, match=f"0..{LAYOUT.vocab_size - 1}"):
        batch_of([1, 2, 3])
