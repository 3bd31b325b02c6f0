"""What a process needs of a checkpoint of many processes is read from the few files that have it, number by number."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.structures import tiny_layout
from ttt_dist.checkpoint import deepspeed_reader
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.checkpoint.manager import METADATA
from ttt_dist.checkpoint.optimizer_state import read_run
from ttt_dist.checkpoint.saved_state import KINDS, WEIGHTS, SavedState
from ttt_dist.checkpoint.torch_io import read_state, write_state
from ttt_dist.checkpoint.universal import UniversalCheckpoint, write_universal
from ttt_dist.config.loader import to_dict
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.pipeline import Recipe
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS, padded_rows, partition_of, shard

pytestmark = pytest.mark.slow  # reading imports deepspeed
LAYOUT = tiny_layout()
MODEL = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=48, tie_embeddings=False)
PROCESSES = 24
Whole = dict[tuple[str, str], Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    return parameter_shapes(MODEL, LAYOUT.padded_vocab_size)


def write_checkpoint(folder: Path, zero: int, whole: Whole) -> None:
    """As DeepSpeed cuts these weights and moments for PROCESSES processes."""
    folder.mkdir()
    for rank in range(PROCESSES):
        state = partitioned(rank, whole) if zero == 3 else flattened(rank, whole)
        write_state({"optimizer_state_dict": state}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    of_stage = [{name: torch.Size(shape) for name, shape in shapes().items()}]
    write_state({"param_shapes": of_stage}, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    config = to_dict(Recipe(model=MODEL))
    about = {"step": 3, "form": "native", "layout": LAYOUT.to_dict(), "zero_stage": zero, "counters": {}}
    (folder / METADATA).write_text(json.dumps({**about, "world_size": PROCESSES, "config": config}))


def partitioned(rank: int, whole: Whole) -> dict[str, Any]:
    def own(kind: str) -> Tensor:
        pieces = []
        for name, shape in shapes().items():
            count = -(-torch.Size(shape).numel() // PROCESSES)
            piece = whole[name, kind].flatten()[rank * count : (rank + 1) * count]
            pieces.append(torch.nn.functional.pad(piece, (0, count - len(piece))))
        return torch.cat(pieces)

    moments = {kind: own(kind) for kind in KINDS[1:]}
    return {
        "fp32_flat_groups": [own(WEIGHTS)],
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0), **moments}}},
    }


def flattened(rank: int, whole: Whole) -> dict[str, Any]:
    from deepspeed.utils.tensor_fragment import fragment_address

    mappings, masters, states = [], [], {}
    for group, wide in enumerate((True, False)):
        names = [name for name, shape in shapes().items() if (len(shape) > 1) == wide]
        total = sum(whole[name, WEIGHTS].numel() for name in names)
        length = -(-total // (2 * PROCESSES)) * 2  # aligned
        first, mapping, start = rank * length, {}, 0
        for name in names:
            end = start + whole[name, WEIGHTS].numel()
            begin, stop = max(start, first), min(end, first + length)
            if begin < stop:
                mapping[name] = fragment_address(numel=stop - begin, start=begin - first)
            start = end
        flats = {
            kind: torch.cat([whole[name, kind].flatten() for name in names])[first : first + length] for kind in KINDS
        }
        mappings.append(mapping)
        masters.append(flats[WEIGHTS].clone())
        states[group] = {"step": torch.tensor(3.0), **{kind: flats[kind].clone() for kind in KINDS[1:]}}
    return {
        "param_slice_mappings": mappings,
        "single_partition_of_fp32_groups": masters,
        "base_optimizer_state": {"state": states},
    }


@pytest.fixture(scope="module")
def whole() -> Whole:
    generator = torch.Generator().manual_seed(0)
    return {(name, kind): torch.randn(shape, generator=generator) for name, shape in shapes().items() for kind in KINDS}


@pytest.fixture(scope="module", params=[1, 3, "portable"])
def source(
    request: pytest.FixtureRequest, whole: Whole, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SavedState]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder / "native", 3 if request.param == "portable" else request.param, whole)
    if request.param == "portable":
        write_universal(DeepSpeedCheckpoint(folder / "native"), folder / "portable")
        yield UniversalCheckpoint(folder / "portable")
    else:
        yield DeepSpeedCheckpoint(folder / "native")


def test_whole_tensors_are_those_that_were_cut(source: SavedState, whole: Whole) -> None:
    for (name, kind), expected in whole.items():
        assert torch.equal(source.read(name, kind), expected), (name, kind)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_of_any_slice_is_what_a_process_keeps(source: SavedState, whole: Whole, data: st.DataObject) -> None:
    name, kind = data.draw(st.sampled_from(sorted(shapes()))), data.draw(st.sampled_from(KINDS))
    size = data.draw(st.sampled_from([1, 2, 4]))
    rank = data.draw(st.integers(0, size - 1))
    tensor = whole[name, kind]
    if name in VOCABULARY_WEIGHTS:
        rows = padded_rows(len(tensor), size) - len(tensor)
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, rows))
    own = (tensor if size == 1 else shard(tensor, partition_of(name), rank, size)).flatten()
    first = data.draw(st.integers(0, len(own) - 1))
    count = data.draw(st.integers(1, len(own) - first))
    mesh = Mesh(tensor=size, ulysses=1, data=1, pipeline=1, rank=rank)
    assert torch.equal(read_run(source, name, kind, mesh, first, count), own[first : first + count])


@pytest.mark.parametrize("zero", [1, 3])
def test_few_files_are_opened(zero: int, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of as many as before keeps a 24th of each weight (ZeRO 3), or of all of them end to end (ZeRO 1)."""
    write_checkpoint(tmp_path / "native", zero, whole)
    opened: set[Path] = set()
    monkeypatch.setattr(deepspeed_reader, "read_state", lambda path, mmap: opened.add(path) or read_state(path, mmap))
    checkpoint = DeepSpeedCheckpoint(tmp_path / "native")
    mesh = Mesh(tensor=1, ulysses=1, data=PROCESSES, pipeline=1, rank=7)
    for name, shape in shapes().items():
        share = -(-torch.Size(shape).numel() // PROCESSES)
        if zero == 3 and 7 * share < torch.Size(shape).numel():
            read_run(checkpoint, name, WEIGHTS, mesh, 7 * share, min(share, torch.Size(shape).numel() - 7 * share))
    if zero == 1:
        read_run(checkpoint, "blocks.0.mlp.down.weight", WEIGHTS, mesh, 0, 64)
    assert (
        len([path for path in opened if "optim" in path.name]) <= 4
    )  # the first, its own, and of rows at its borders the neighbours'


def test_groups_in_another_order_are_searched(whole: Whole, tmp_path: Path) -> None:
    """What another version of DeepSpeed cuts elsewhere is found by its maps."""
    from ttt_dist.checkpoint.deepspeed_reader import Flattened

    write_checkpoint(tmp_path / "native", 1, whole)
    checkpoint = DeepSpeedCheckpoint(tmp_path / "native")
    part = checkpoint._part(0, 0)
    assert isinstance(part, Flattened)
    part.places = {name: (group, start + 40) for name, (group, start) in part.places.items()}
    for name in shapes():
        assert torch.equal(checkpoint.read(name, WEIGHTS), whole[name, WEIGHTS])
