"""Rule 1: one loss, whatever the layout. Every row of the tables against the one-process fp32 run, over 6 steps."""

from typing import Any

import pytest

from tests.distributed.cases import Layout, deviation, losses, losses_of_local_counts, resume
from tests.distributed.launch import run_distributed

STEPS = 6
FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 3e-3  # against bf16 itself: what sums in another order make of 8-bit mantissas in 6 steps
BF16_FROM_FP32 = 2e-2

REFERENCES = [Layout(1, 0, 8, normalisation=n, tied=t) for n in ("sample", "token") for t in (False, True)]
ALONE = [Layout(1, zero, micro) for zero, micro in ((0, 2), (1, 2), (2, 4), (3, 1), (3, 8))]
PAIRS = [
    *(Layout(2, zero, micro, normalisation=n) for zero in range(4) for micro in (1, 4) for n in ("sample", "token")),
    *(Layout(2, zero, 2, tied=True) for zero in range(4)),
]
BF16_REFERENCE = Layout(1, 1, 8, "bf16")
BF16 = [Layout(2, zero, 2, "bf16") for zero in range(4)]
RESUMED = [Layout(2, zero, 1, precision) for zero in range(4) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def alone() -> dict[Layout, Any]:
    """Records of the one-process runs."""
    layouts = [*REFERENCES, *ALONE, BF16_REFERENCE]
    return dict(zip(layouts, _of_first_rank([(losses, (layout, STEPS)) for layout in layouts], 1), strict=True))


@pytest.fixture(scope="module")
def pairs() -> dict[Any, Any]:
    """Records of the two-process runs; of the resumed ones under ("resume", layout)."""
    cases: dict[Any, Any] = {layout: (losses, (layout, STEPS)) for layout in (*PAIRS, *BF16)}
    cases["broken"] = (losses_of_local_counts, (PAIRS[0], STEPS))
    cases |= {("resume", layout): (resume, (layout, 3, 3)) for layout in RESUMED}
    return dict(zip(cases, _of_first_rank(list(cases.values()), 2), strict=True))


@pytest.mark.parametrize("layout", ALONE, ids=str)
def test_one_process(layout: Layout, alone: dict[Layout, Any]) -> None:
    assert deviation(alone[layout], alone[_reference(layout)]) < FP32_TOLERANCE


@pytest.mark.parametrize("layout", PAIRS, ids=str)
def test_two_processes(layout: Layout, alone: dict[Layout, Any], pairs: dict[Any, Any]) -> None:
    assert deviation(pairs[layout], alone[_reference(layout)]) < FP32_TOLERANCE


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout, alone: dict[Layout, Any], pairs: dict[Any, Any]) -> None:
    assert deviation(pairs[layout], alone[BF16_REFERENCE]) < BF16_TOLERANCE
    assert deviation(pairs[layout], alone[_reference(layout)]) < BF16_FROM_FP32


def test_the_table_sees_a_local_count(alone: dict[Layout, Any], pairs: dict[Any, Any]) -> None:
    assert deviation(pairs["broken"], alone[_reference(PAIRS[0])]) > 100 * FP32_TOLERANCE


def test_the_weights_move(alone: dict[Layout, Any]) -> None:
    records = alone[REFERENCES[0]]
    assert records[-1][0] < 0.9 * records[0][0]


@pytest.mark.parametrize("layout", RESUMED, ids=str)
def test_resume_is_bit_exact(layout: Layout, pairs: dict[Any, Any]) -> None:
    going_on, resumed, difference = pairs["resume", layout]
    assert resumed == going_on
    assert difference == 0.0


def _reference(layout: Layout) -> Layout:
    return Layout(1, 0, 8, normalisation=layout.normalisation, tied=layout.tied)


def _of_first_rank(cases: list[Any], world_size: int) -> list[Any]:
    return [ranks[0] for ranks in run_distributed(cases, world_size)]
