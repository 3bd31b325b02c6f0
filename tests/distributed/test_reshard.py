"""A run goes on in another layout of processes as if it had never been stopped, optimizer state included."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.cases import LR, Layout, deviation
from tests.distributed.launch import run_distributed
from tests.distributed.reshard_cases import failure_on_one_rank, go_on, own_state, rounding, train_and_save
from tests.distributed.test_one_loss import BF16_FROM_FP32, BF16_TOLERANCE, FP32_TOLERANCE
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.checkpoint.saved_state import EMA, KINDS, MOMENTS, WEIGHTS
from ttt_dist.checkpoint.universal import UniversalCheckpoint, write_universal

SAVED, AFTER = 3, 3
STEP = f"step-{SAVED:08d}"
# Of the norm of a weight's moments, against one process. Misplaced numbers make it 1; in bf16, sums that tensor
# parallelism rounds once more are 5e-2 apart when squared.
MOMENT_TOLERANCE = {"fp32": 1e-4, "bf16": 0.15}

PLAIN = Layout()
SPLIT = Layout(1, 2, tensor=2)
SHARDED = Layout(3, 2, dp=2)
SHARDED_SPLIT = Layout(3, 2, dp=2, tensor=2)
STAGES = Layout(1, 2, pipeline=2)
WIDE_STAGES = Layout(0, 2, pipeline=2, tensor=2, tied=True, kv_heads=1)
TOKENS = Layout(3, 2, ulysses=2)
BF16 = Layout(3, 2, dp=2, precision="bf16")

# One way; the first four also back.
PAIRS = [
    (Layout(0, 2, tensor=2), PLAIN),
    (SHARDED, SHARDED_SPLIT),
    (STAGES, SHARDED),
    (WIDE_STAGES, Layout(2, 2, dp=2, tied=True, kv_heads=1)),
    (replace(STAGES, zero=0, dp=2), Layout(1, 2, tensor=2, sequence_parallel=True)),
    (TOKENS, Layout(1, 4, tensor=2, ulysses=2)),
    (Layout(1, 2, tensor=4, qk_norm=True, kv_heads=1), Layout(1, 2, dp=4, qk_norm=True, kv_heads=1)),
    (Layout("2_offload", 2, dp=2), Layout("3_offload", 2, tensor=2)),
    *((replace(a, tuned=True), replace(b, tuned=True)) for a, b in ((SHARDED, STAGES), (PLAIN, SPLIT))),
    (BF16, Layout(1, 2, tensor=2, precision="bf16")),
    (Layout(0, 2, dp=2, precision="bf16"), replace(STAGES, precision="bf16")),
    (Layout(2, 2, dp=2, precision="bf16", tied=True), replace(STAGES, zero=0, precision="bf16", tied=True)),
]
MOVES = [*PAIRS, *((target, source) for source, target in PAIRS[:4]), (SHARDED, BF16)]
# Loaded number by number into the very layout that they were saved from.
SAME = [
    SHARDED,
    SHARDED_SPLIT,
    STAGES,
    WIDE_STAGES,
    BF16,
    Layout(0, 2, dp=2, precision="bf16"),
    replace(STAGES, zero=0, precision="bf16", tied=True),
]
# Without a conversion before.
DIRECT = [(SHARDED_SPLIT, SHARDED), (WIDE_STAGES, Layout(2, 2, dp=2, tied=True, kv_heads=1)), (SHARDED, BF16)]
UNTRAINED = (Layout(1, 2, dp=2), SHARDED)  # saved before Adam has any state


def one_process(layout: Layout) -> Layout:
    """The run of one process with the same model and precision."""
    return layout.reference if layout.precision == "fp32" else replace(layout.reference, zero=1, precision="bf16")


pytestmark = pytest.mark.timeout(1500)  # the first test waits for all runs


class Saved:
    """Every source layout's checkpoint, natively and converted, and what the runs that went on have seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sources = {layout for move in (*MOVES, *DIRECT) for layout in move} | set(SAME)
        references = {one_process(source) for source in sources}
        cases = {
            (layout, SAVED): (train_and_save, (layout, self.of(layout), SAVED, AFTER))
            for layout in sorted(sources | references, key=str)
        }
        untrained = UNTRAINED[0]
        cases[untrained, 0] = (train_and_save, (untrained, self.of(untrained, 0), 0, AFTER))
        self.went_on = run_by_size(cases)
        for layout, before in cases:
            folder = self.of(layout, before)
            write_universal(DeepSpeedCheckpoint(folder / f"step-{before:08d}"), folder / "portable")

        loads: dict[Any, Any] = {}
        for source, target in (*MOVES, *((layout, layout) for layout in SAME)):
            loads[source, target] = (go_on, (target, self.of(source) / "portable", SAVED, AFTER))
        for source, target in DIRECT:
            loads["direct", source, target] = (go_on, (target, self.of(source) / STEP, SAVED, AFTER))
        loads["untrained", UNTRAINED[1]] = (go_on, (UNTRAINED[1], self.of(UNTRAINED[0], 0) / "portable", 0, AFTER))
        self.resumed = run_by_size(loads)

    def of(self, layout: Layout, before: int = SAVED) -> Path:
        return self.folder / f"{layout}-{before}"


def run_by_size(cases: dict[Any, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[Any, Any]:
    """Results of rank 0; a case's first argument is its layout."""
    results = {}
    sizes = {key: arguments[0].world_size for key, (_, arguments) in cases.items()}
    for world_size in sorted(set(sizes.values())):
        keys = [key for key in cases if sizes[key] == world_size]
        ranks = run_distributed([cases[key] for key in keys], world_size)
        results |= {key: by_rank[0] for key, by_rank in zip(keys, ranks, strict=True)}
    return results


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("reshard"))


def names(values: Any) -> str:
    return str(values) if isinstance(values, Layout) else " to ".join(map(str, values))


@pytest.mark.parametrize("move", MOVES, ids=names)
def test_a_run_goes_on_in_another_layout(move: tuple[Layout, Layout], saved: Saved) -> None:
    source, target = move
    tolerance = FP32_TOLERANCE if source.precision == "fp32" else BF16_TOLERANCE
    if source.precision != target.precision:
        tolerance = BF16_FROM_FP32
    assert deviation(saved.resumed[move], saved.went_on[source, SAVED]) < tolerance


@pytest.mark.parametrize("layout", SAME, ids=names)
def test_between_equal_layouts_no_bit_changes(layout: Layout, saved: Saved) -> None:
    assert saved.resumed[layout, layout] == saved.went_on[layout, SAVED]


@pytest.mark.parametrize("move", DIRECT, ids=names)
def test_a_checkpoint_needs_no_conversion_first(move: tuple[Layout, Layout], saved: Saved) -> None:
    expected = saved.resumed[move]
    assert saved.resumed["direct", *move] == expected


def test_a_run_that_has_not_begun_begins(saved: Saved) -> None:
    assert deviation(saved.resumed["untrained", UNTRAINED[1]], saved.went_on[UNTRAINED[0], 0]) < FP32_TOLERANCE
    assert UniversalCheckpoint(saved.of(UNTRAINED[0], 0) / "portable").adam_step == 0


def test_one_process_is_read_to_the_last_bit(tmp_path: Path) -> None:
    """The anchor of the next test: DeepSpeed's own tensors, without ZeRO."""
    ((expected,),) = run_distributed([(own_state, (SAVED, tmp_path))], 1)
    native = DeepSpeedCheckpoint(tmp_path / STEP)
    assert native.adam_step == SAVED
    assert set(expected) == {(name, kind) for name in native.shapes for kind in KINDS}
    for (name, kind), value in expected.items():
        np.testing.assert_array_equal(native.read(name, kind).numpy(), value, err_msg=f"{kind} of {name}")


@pytest.mark.parametrize("source", dict.fromkeys(layout for move in PAIRS for layout in move), ids=names)
def test_weights_and_moments_are_those_of_one_process(source: Layout, saved: Saved) -> None:
    found, expected = (UniversalCheckpoint(saved.of(layout) / "portable") for layout in (source, one_process(source)))
    assert found.shapes == expected.shapes
    assert found.adam_step == expected.adam_step == SAVED
    for name in found.shapes:
        if source.precision == "fp32":  # Adam's first steps are signs: where a gradient is tiny, bf16 may have another
            difference = (found.read(name, WEIGHTS) - expected.read(name, WEIGHTS)).abs().max()
            assert difference < LR / 10, name
        for kind in MOMENTS:
            one, other = found.read(name, kind), expected.read(name, kind)
            error, size = (float(torch.linalg.vector_norm(value)) for value in (one - other, other))
            assert error <= MOMENT_TOLERANCE[source.precision] * size, f"{kind} of {name}: {error:.1e} of {size:.1e}"
        if source.tuned:  # a decay of 0.5: half of the last weights, and of those before
            weights, average = found.read(name, WEIGHTS), found.read(name, EMA)
            torch.testing.assert_close(average, expected.read(name, EMA), rtol=0, atol=LR / 10)
            assert (name.startswith("blocks.0.mlp.")) == torch.equal(average, weights), name


@pytest.mark.parametrize("layout", [BF16, Layout(2, 2, dp=2, precision="bf16"), Layout(1, 2, dp=2, precision="bf16")])
def test_weights_of_the_forward_pass_are_the_rounded_ones(layout: Layout, saved: Saved) -> None:
    ((worst, _),) = run_distributed([(rounding, (layout, saved.of(SHARDED) / "portable"))], 2)
    assert worst == 0.0


def test_a_failure_is_everyones(saved: Saved) -> None:
    """... or the others would wait for the rank that failed."""
    (told,) = run_distributed([(failure_on_one_rank, (SHARDED, saved.of(SHARDED) / "portable"))], 2)
    assert told == ["a disk failed here"] * 2
