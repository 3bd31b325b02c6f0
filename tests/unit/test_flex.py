"""FlexAttention's block mask against the dense mask, and its output against dense attention."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as library

from tests.structures import packs, tiny_layout
from tests.unit.test_attention import OBJECTIVES, dense, heads_of
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention import flex
from ttt_dist.model.attention.flex import FlexPlan, attend_flex
from ttt_dist.model.attention.padded import BucketedSdpaPlan
from ttt_dist.model.attention.plan import attend, attention_plan
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.visibility import dense_mask

LAYOUT = tiny_layout()
SIZES = [8, 16]
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="compiled FlexAttention with its backward needs a CUDA device, and pytest --noconftest to see it",
)


def flat_mask(batch: Batch) -> Tensor:
    """The dense mask of the rows laid end to end, bool [T, T]."""
    blocks = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)
    return torch.block_diag(*blocks.int()).bool()


def plan_of(batch: Batch, block_size: int) -> FlexPlan:
    return FlexPlan.build(batch.sample_ids, batch.span_ids, block_size)


def listed(num_blocks: Tensor, indices: Tensor) -> np.ndarray:
    """Blocks that a list of a BlockMask names, bool [query blocks, key blocks]; no block is named twice."""
    flags = np.zeros(indices.shape[-2:], dtype=bool)
    for row, (count, names) in enumerate(zip(num_blocks[0, 0].tolist(), indices[0, 0].tolist(), strict=True)):
        assert len(set(names[:count])) == count
        flags[row, names[:count]] = True
    return flags


@contextmanager
def dense_maths() -> Iterator[None]:
    """flex_attention uncompiled: the mask_mod at every pair, whatever the shape and the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(flex, "_compiled", lambda: library.flex_attention)
        yield


@settings(max_examples=60)
@given(packs(LAYOUT), st.sampled_from(OBJECTIVES), st.integers(0, 20), st.sampled_from(SIZES))
def test_mask_and_blocks_equal_the_dense_mask(rows: list, objective: Objective, padding: int, size: int) -> None:
    """Pair by pair, and block by block: full blocks are wholly visible, blocks that are not listed wholly invisible."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + padding
    batch = collate(rows, LAYOUT, objective, 0, [0] * len(rows), seq_len)
    block_mask, mask = plan_of(batch, size).block_mask, flat_mask(batch)
    index = torch.arange(len(mask))
    mine = block_mask.mask_mod(index[:1], index[:1], index[:, None], index[None, :])
    assert torch.equal(mine, mask)
    assert block_mask.seq_lengths == (len(mask), len(mask))

    num_blocks = -(-len(mask) // size)
    padded = torch.zeros(num_blocks * size, num_blocks * size, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    blocks = padded.view(num_blocks, size, num_blocks, size).transpose(1, 2).flatten(2)
    some, every = blocks.any(-1).numpy(), blocks.all(-1).numpy()
    partial = listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    np.testing.assert_array_equal(full, every)
    np.testing.assert_array_equal(partial, some & ~every)
    # The lists by key blocks, which the backward reads.
    np.testing.assert_array_equal(listed(block_mask.full_q_num_blocks, block_mask.full_q_indices), every.T)
    np.testing.assert_array_equal(listed(block_mask.q_num_blocks, block_mask.q_indices), (some & ~every).T)


@settings(max_examples=40)
@given(packs(LAYOUT), st.sampled_from(OBJECTIVES), st.integers(0, 9), st.sampled_from([(2, 2), (4, 2), (3, 1)]))
def test_output_equals_the_dense_mask(rows: list, objective: Objective, padding: int, heads: tuple[int, int]) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + padding
    batch = collate(rows, LAYOUT, objective, 0, [0] * len(rows), seq_len)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        q, k, v = heads_of(batch, *heads, dtype=dtype)
        with dense_maths():
            out = attend_flex(*(x.flatten(0, 1) for x in (q, k, v)), plan_of(batch, 8)).view_as(q)
        torch.testing.assert_close(out, dense(q, k, v, batch), rtol=0, atol=tolerance)
        assert not out[batch.sample_ids == 0].any()


def test_blocks_of_a_long_pack_are_few() -> None:
    """Samples of four blocks each in a pack of 64: work grows with the samples' squares, not with the pack's."""
    sample_ids = torch.arange(1, 17).repeat_interleave(512)[None]
    block_mask = FlexPlan.build(sample_ids, torch.zeros_like(sample_ids)).block_mask
    assert block_mask.kv_num_blocks.sum() == 64  # the diagonal
    assert block_mask.full_kv_num_blocks.sum() == 16 * 6


def test_cpu_and_decoding_take_buckets() -> None:
    ids = torch.ones(1, 5, dtype=torch.long)
    assert isinstance(attention_plan(ids, ids * 0), BucketedSdpaPlan)
    if torch.cuda.is_available():
        assert isinstance(attention_plan(ids.cuda(), ids.cuda() * 0), FlexPlan)
        with torch.inference_mode():
            assert isinstance(attention_plan(ids.cuda(), ids.cuda() * 0), BucketedSdpaPlan)


def batch_of(seed: int, seq_len: int = 300) -> Batch:
    """Two packs whose structure differs with the seed; 600 tokens are no multiple of the block."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(2):
        row, room = [], seq_len
        while room > 90:
            codes = rng.integers(LAYOUT.first_code, LAYOUT.first_code + LAYOUT.num_codes, rng.integers(1, 60))
            ids = [1, 2, 3, LAYOUT.begin_of_audio, *codes, LAYOUT.end_of_audio_new, 4, LAYOUT.im_end]
            row.append(Sample.of([Segment(np.array(ids[:2]), False), Segment(np.array(ids[2:]), True)]))
            room -= len(ids)
        rows.append(row)
    return collate(rows, LAYOUT, Objective(p_trunc=0.0), 0, [0, 0], seq_len)


@pytest.mark.parametrize("whole_function", [False, True])
def test_a_new_batch_of_the_same_shape_compiles_nothing(monkeypatch: pytest.MonkeyPatch, whole_function: bool) -> None:
    """Also inside a compiled function, as a compiled block has it."""
    torch._dynamo.reset()
    compiled = torch.compile(library.flex_attention, backend="aot_eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    call = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False) if whole_function else attend
    graphs = []
    for seed in range(5):
        batch = batch_of(seed)
        q, k, v = heads_of(batch, 4, 2, dtype=torch.float32, width=16)
        with torch.no_grad():
            out = call(*(x.flatten(0, 1) for x in (q, k, v)), FlexPlan.build(batch.sample_ids, batch.span_ids))
        torch.testing.assert_close(out.view_as(q), dense(q, k, v, batch), rtol=0, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[-1], graphs


@needs_cuda
def test_compiled_forward_and_backward_equal_dense_within_bf16() -> None:
    batch = batch_of(0).to("cuda")
    q, k, v = (x.cuda().bfloat16().requires_grad_() for x in heads_of(batch_of(0), 4, 2, dtype=torch.float32, width=64))
    plan = attention_plan(batch.sample_ids, batch.span_ids, torch.bfloat16)
    out = attend(*(x.flatten(0, 1) for x in (q, k, v)), plan).view_as(q)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = dense(*exact, batch)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-2, atol=2e-2)
    assert not out[batch.sample_ids == 0].any()
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), upstream)
    for mine, reference in zip(grads, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        error = (mine.double() - reference).norm() / reference.norm()
        assert error < 1e-2, error


@needs_cuda
def test_training_on_new_batches_compiles_once() -> None:
    torch._dynamo.reset()
    graphs = []
    for seed in range(5):
        batch = batch_of(seed).to("cuda")
        inputs = heads_of(batch_of(seed), 4, 2, dtype=torch.float32, width=64)
        q, k, v = (x.cuda().bfloat16().flatten(0, 1).requires_grad_() for x in inputs)
        attend(q, k, v, attention_plan(batch.sample_ids, batch.span_ids, torch.bfloat16)).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1], graphs
