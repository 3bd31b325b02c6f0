"""Rule 1: one loss, whatever the layout. Rows of the table against the one-process fp32 run, over 6 steps."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.cases import (
    BORDER,
    LR,
    Layout,
    deviation,
    losses,
    losses_and_graphs,
    losses_of_local_counts,
    resume,
    trained_weights,
)
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT

STEPS = 6
GOING_ON = 3  # steps after a save, by the engine that saved and by one that loads
FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 3e-3  # against bf16 itself: what sums in another order make of 8-bit mantissas in 6 steps
BF16_FROM_FP32 = 2e-2

SPLIT = Layout(tensor=2)
SEQUENCE = Layout(tensor=2, sequence_parallel=True)
STAGES = Layout(pipeline=2, micro=2)
TOKENS = Layout(ulysses=2)

FP32 = [
    # one process: micro-batches, ZeRO, what is kept for the backward pass
    *(Layout(zero, micro) for zero, micro in ((0, 2), (2, 4), (3, 1))),
    *(Layout(zero, checkpointing=mode) for zero, mode in ((0, "full"), (3, "selective"))),
    # data parallel and ZeRO
    *(Layout(zero, 1, 2, normalisation="sample") for zero in (0, 2, 3)),
    *(Layout(zero, 4, 2, normalisation="token") for zero in (1, 3)),
    *(Layout(zero, 2, 2, tied=True) for zero in (1, 3)),
    *(Layout(zero, 2, 2, checkpointing=mode) for zero, mode in ((1, "selective"), (3, "full"))),
    Layout(3, 2, 4),
    *(Layout(zero, 2, 2) for zero in ("2_offload", "3_offload")),
    Layout("3_offload", 2, tensor=2),
    # tensor parallel, with and without sequence parallel; one key-value head for two processes; normalised heads
    *(replace(SPLIT, zero=zero, micro=2) for zero in (1, 3)),
    *(replace(SEQUENCE, zero=zero, micro=2) for zero in (0, 2, 3)),
    *(replace(split, zero=zero, tied=True, kv_heads=1) for split, zero in ((SPLIT, 3), (SEQUENCE, 0))),
    *(replace(split, zero=1, qk_norm=True, kv_heads=heads) for split, heads in ((SPLIT, 1), (SEQUENCE, 2))),
    *(replace(s, zero=z, checkpointing=m) for s, z, m in ((SPLIT, 1, "selective"), (SEQUENCE, 3, "full"))),
    *(Layout(zero, 2, dp=2, tensor=2, tied=tied) for zero, tied in ((1, True), (3, False))),
    Layout(3, 2, dp=2, tensor=2, sequence_parallel=True, kv_heads=1),
    Layout(2, tensor=4),
    Layout(1, tensor=4, kv_heads=1, tied=True),
    # pipeline
    *(replace(STAGES, zero=zero, tied=tied) for zero, tied in ((0, True), (1, False))),
    *(replace(STAGES, checkpointing=mode, kv_heads=1) for mode in ("selective", "full")),
    *(replace(STAGES, zero=zero, tensor=2, tied=tied) for zero, tied in ((0, False), (1, True))),
    replace(STAGES, zero=1, tensor=2, sequence_parallel=True, kv_heads=1, tied=True),
    *(replace(STAGES, zero=zero, dp=2, tied=tied) for zero, tied in ((0, True), (1, False))),
    Layout(1, 1, pipeline=4, tied=True),
    # Ulysses
    *(replace(TOKENS, zero=zero, micro=2) for zero in (1, 3)),
    replace(TOKENS, zero=3, tied=True, kv_heads=1, qk_norm=True),
    Layout(3, 1, dp=2, ulysses=2),
    Layout(3, 4, tensor=2, ulysses=2),
    Layout(1, 4, tensor=2, ulysses=2, sequence_parallel=True, kv_heads=1),
    # the paper's objective, and one that changes on the way
    *(replace(layout, preset="paper") for layout in (Layout(3, 2, 2), replace(SEQUENCE, zero=1), STAGES)),
    Layout(3, 2, 2, noise_schedule="cosine"),
    *(replace(layout, p_draft=0.7) for layout in (Layout(3, 2, 2), replace(SEQUENCE, zero=1), STAGES, TOKENS)),
    *(replace(layout, z_loss=0.1) for layout in (Layout(3, 2, 2), replace(SEQUENCE, zero=1), STAGES, TOKENS)),
    *(
        replace(layout, tuned=True)
        for layout in (Layout(0, 2), Layout(2, 1, 2), Layout("2_offload", 4, 2), Layout(3, 2, 2))
    ),
    *(
        replace(layout, tuned=True, tied=True)
        for layout in (Layout(1, 4), replace(SEQUENCE, zero=3), replace(STAGES, zero=1))
    ),
    *(replace(layout, tuned=True) for layout in (SPLIT, STAGES, replace(TOKENS, zero=3))),
    *(replace(layout, staged=True) for layout in (Layout(2, 1, 2), SPLIT, replace(SEQUENCE, zero=3), STAGES, TOKENS)),
]
# Neighbours of these rows, which the whole table has beside them: `python -m tests.distributed.test_one_loss`.
MORE = [
    *(Layout(zero, micro) for zero, micro in ((1, 2), (3, 8))),
    *(Layout(zero, checkpointing=mode) for zero, mode in ((0, "selective"), (3, "full"))),
    Layout(1, 1, 2, normalisation="sample"),
    *(Layout(zero, 4, 2, normalisation="token") for zero in (0, 2)),
    *(Layout(zero, 2, 2, tied=True) for zero in (0, 2)),
    *(Layout(zero, 2, 2, checkpointing=mode) for zero, mode in ((1, "full"), (3, "selective"))),
    Layout(0, 2, 4),
    *(replace(SPLIT, zero=zero, micro=2) for zero in (0, 2)),
    replace(SEQUENCE, zero=1, micro=2),
    *(replace(split, zero=zero, tied=True, kv_heads=1) for split, zero in ((SPLIT, 0), (SEQUENCE, 3))),
    *(replace(split, zero=1, qk_norm=True, kv_heads=heads) for split, heads in ((SPLIT, 2), (SEQUENCE, 1))),
    *(replace(s, zero=z, checkpointing=m) for s, z, m in ((SPLIT, 3, "full"), (SEQUENCE, 1, "selective"))),
    *(replace(STAGES, zero=zero, tied=tied) for zero, tied in ((0, False), (1, True))),
    *(replace(TOKENS, zero=zero, micro=2) for zero in (0, 2)),
    replace(TOKENS, zero=1, tied=True, kv_heads=1, qk_norm=True),
]
BF16 = [
    *(Layout(zero, 2, 2, precision="bf16") for zero in range(4)),
    *(replace(SPLIT, zero=zero, precision="bf16") for zero in (1, 2, 3)),
    *(replace(SEQUENCE, zero=zero, precision="bf16", checkpointing="full") for zero in (1, 3)),
    *(replace(STAGES, zero=zero, precision="bf16") for zero in (0, 1)),
    replace(TOKENS, zero=3, precision="bf16"),
    Layout(3, 2, dp=2, tensor=2, precision="bf16"),
    replace(STAGES, zero=1, tensor=2, precision="bf16"),
]
FP8 = [
    Layout(1, 4, 2, precision="bf16", fp8=True),
    Layout(3, 4, 2, precision="bf16", fp8=True, checkpointing="selective"),
]
COMPILED = [
    Layout(compile=True, staged=True),
    Layout(compile=True, checkpointing="selective"),
    Layout(1, 2, 2, compile=True, checkpointing="full"),
]
RESUMED = [
    *(Layout(zero, 1, 2, precision=precision) for zero in range(4) for precision in ("fp32", "bf16")),
    replace(SEQUENCE, zero=3, precision="bf16"),
    replace(SPLIT, zero=0, tied=True),
    *(replace(STAGES, zero=1, precision=precision, tied=True) for precision in ("fp32", "bf16")),
    replace(TOKENS, zero=3),
    *(replace(layout, zero=1, staged=True) for layout in (Layout(micro=1, dp=2), SPLIT, STAGES, TOKENS)),
    *(replace(layout, tuned=True) for layout in (Layout(2, 1, 2), Layout(3, 2, 2), replace(STAGES, zero=1))),
    replace(STAGES, zero=1, tuned=True, tied=True),
]
# One of each kind: its weights after training are put together and compared.
GATHERED = [
    Layout(3, 2, dp=2, tensor=2),
    replace(STAGES, tensor=2, tied=True, kv_heads=1),
    Layout(1, 4, tensor=2, ulysses=2, sequence_parallel=True),
]
# Some of their weights stay as they are: those are compared with the first ones.
FROZEN = [Layout(3, 2, dp=2, tuned=True), Layout(1, tensor=2, tuned=True)]
BF16_REFERENCE = Layout(1, precision="bf16")
LOCAL_COUNTS = Layout(0, 1, 2)


pytestmark = pytest.mark.timeout(1500)  # the first test waits for all runs


def loss_cases(rows: Sequence[Layout] = (*FP32, *BF16, *FP8)) -> dict[Any, Any]:
    """The runs of these rows and of their references."""
    layouts = [*rows, BF16_REFERENCE]
    layouts += [layout.reference for layout in layouts]
    return {layout: (losses, (layout, STEPS)) for layout in layouts}


@pytest.fixture(scope="module")
def records() -> dict[Any, Any]:
    """What rank 0 brought home of every run, one set of processes per number of them."""
    cases = loss_cases()
    cases["local counts", LOCAL_COUNTS] = (losses_of_local_counts, (LOCAL_COUNTS, STEPS))
    cases |= {("resume", layout): (resume, (layout, BORDER, GOING_ON)) for layout in RESUMED}
    gathered = {layout for row in (*GATHERED, *FROZEN) for layout in (row, row.reference)}
    cases |= {("first weights", layout): (trained_weights, (layout, 0)) for layout in FROZEN}
    cases |= {("weights", layout): (trained_weights, (layout, 2)) for layout in gathered}
    return run_all(cases)


def run_all(cases: dict[Any, Any]) -> dict[Any, Any]:
    """Results of rank 0; a case's key is its layout, or ends with it."""
    sizes = {key: (key if isinstance(key, Layout) else key[-1]).world_size for key in cases}
    results = {}
    for world_size in sorted(set(sizes.values())):
        keys = [key for key in cases if sizes[key] == world_size]
        ranks = run_distributed([cases[key] for key in keys], world_size)
        results |= {key: by_rank[0] for key, by_rank in zip(keys, ranks, strict=True)}
    return results


@pytest.mark.parametrize("layout", FP32, ids=str)
def test_fp32(layout: Layout, records: dict[Any, Any]) -> None:
    assert deviation(records[layout], records[layout.reference]) < FP32_TOLERANCE


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout, records: dict[Any, Any]) -> None:
    assert deviation(records[layout], records[BF16_REFERENCE]) < BF16_TOLERANCE
    assert deviation(records[layout], records[layout.reference]) < BF16_FROM_FP32


@pytest.mark.parametrize("layout", FP8, ids=str)
def test_fp8(layout: Layout, records: dict[Any, Any]) -> None:
    assert 1e-4 < deviation(records[layout], records[layout.reference]) < BF16_FROM_FP32


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed compiler leaves a shared one broken
    plain = {layout.reference for layout in COMPILED}
    results = run_all({layout: (losses_and_graphs, (layout, BORDER + 1)) for layout in (*COMPILED, *plain)})
    assert all(results[layout][1] == 0 for layout in plain)
    for layout in COMPILED:
        (found, graphs), (reference, _) = results[layout], results[layout.reference]
        assert deviation(found, reference) < FP32_TOLERANCE, str(layout)
        assert graphs == 1, str(layout)  # of both blocks, all micro-batches and steps


@pytest.mark.parametrize("layout", GATHERED, ids=str)
def test_weights_are_put_together(layout: Layout, records: dict[Any, Any]) -> None:
    found, expected = records["weights", layout], records["weights", layout.reference]
    assert list(found) == list(expected)
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, rtol=0, atol=LR / 10, err_msg=name)


def test_what_is_to_stay_as_it_is_stays(records: dict[Any, Any]) -> None:
    for layout in FROZEN:
        before, after = records["first weights", layout], records["weights", layout]
        moved = {name: np.abs(after[name] - before[name]) for name in before}
        num_text = LAYOUT.num_text_tokens
        assert moved["embed.weight"][:num_text].max() == 0 < moved["embed.weight"][num_text:].max(), str(layout)
        still = {name for name, by in moved.items() if by.max() == 0}
        assert still == {"blocks.0.mlp.gate_up.weight", "blocks.0.mlp.down.weight"}, str(layout)


def test_the_table_sees_a_local_count(records: dict[Any, Any]) -> None:
    broken = records["local counts", LOCAL_COUNTS]
    assert deviation(broken, records[LOCAL_COUNTS.reference]) > 100 * FP32_TOLERANCE


def test_the_weights_move(records: dict[Any, Any]) -> None:
    losses_by_step = records[Layout()]
    assert losses_by_step[-1][0] < 0.9 * losses_by_step[0][0]


@pytest.mark.parametrize("layout", RESUMED, ids=str)
def test_resume_is_bit_exact(layout: Layout, records: dict[Any, Any]) -> None:
    going_on, resumed, difference = records["resume", layout]
    assert resumed == going_on
    assert difference == 0.0


def print_table() -> None:
    """The largest relative deviation of each row of the whole table, as Markdown."""
    rows = (*FP32, *MORE, *BF16)
    records = run_all(loss_cases(rows))
    print("| layout | loss and gradient norm, against one process in fp32 | in bf16 |\n|---|---|---|")
    for layout in rows:
        in_bf16 = f"{deviation(records[layout], records[BF16_REFERENCE]):.1e}" if layout in BF16 else ""
        print(f"| {layout} | {deviation(records[layout], records[layout.reference]):.1e} | {in_bf16} |")


if __name__ == "__main__":  # python -m tests.distributed.test_one_loss
    print_table()
