"""Gradients of single micro-batches: in every layout and ZeRO stage those that plain torch computes."""

from dataclasses import replace
from typing import Any

import pytest

from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from tests.distributed.watched import directly, measured_steps

STEPS = 2
SPLIT, STAGES = Layout(tensor=2, micro=2), Layout(pipeline=2, micro=2)
PLAIN = [Layout(0, micro) for micro in (1, 2)]  # of one pack each, one micro-batch is empty
FP32 = [
    Layout(3, 2),
    *(Layout(zero, micro, 2) for zero, micro in ((0, 2), (1, 1), (2, 1))),
    Layout("2_offload", 2, 2),
    Layout(3, 2, 2, checkpointing="full"),
    Layout(1, 2, compile=True),
    replace(SPLIT, zero=3),
    replace(SPLIT, zero=1, sequence_parallel=True),
    replace(STAGES, zero=1),
]
OTHERS = [
    Layout(0, 2, **changes)
    for changes in ({"tied": True}, {"tuned": True}, {"normalisation": "token"}, {"adapted": True})
]
OF_OTHERS = [replace(layout, zero=zero, dp=2) for layout, zero in zip(OTHERS, (3, 1, 3, 1), strict=True)]
BF16 = [
    replace(layout, precision="bf16")
    for layout in (
        Layout(3, 2, 2),
        replace(STAGES, zero=1),
        replace(OTHERS[3], zero=2, dp=2),
        replace(OTHERS[3], zero="2_offload", dp=2),
    )
]

pytestmark = pytest.mark.timeout(900)  # the first test waits for all runs


@pytest.fixture(scope="module")
def runs() -> dict[Any, Any]:
    """[rank] of every layout, and of those in plain torch."""
    cases: dict[Any, Any] = {
        layout: (measured_steps, (layout, STEPS)) for layout in (*PLAIN, *FP32, *OTHERS, *OF_OTHERS, *BF16)
    }
    cases |= {("directly", layout): (directly, (layout,)) for layout in (*PLAIN, OTHERS[0], OTHERS[2])}
    results = {}
    for world_size in (1, 2):
        keys = [key for key in cases if (key[1] if isinstance(key, tuple) else key).world_size == world_size]
        results |= dict(zip(keys, run_distributed([cases[key] for key in keys], world_size), strict=True))
    return results


@pytest.mark.parametrize("layout", [*PLAIN, OTHERS[0], OTHERS[2]], ids=str)
def test_one_process_measures_what_plain_torch_computes(layout: Layout, runs: dict[Any, Any]) -> None:
    assert runs[layout][0][0][:2] == pytest.approx(runs["directly", layout][0], rel=1e-5)


@pytest.mark.parametrize("layout", [*FP32, *OF_OTHERS], ids=str)
def test_the_layout_changes_nothing(layout: Layout, runs: dict[Any, Any]) -> None:
    reference = replace(layout.reference, micro=layout.micro)
    for rank in runs[layout]:
        for mine, expected in zip(rank, runs[reference][0], strict=True):
            assert expected[2] > 0
            assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)  # some are small differences of large numbers


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16_is_near(layout: Layout, runs: dict[Any, Any]) -> None:
    """The squares and the noise are; |G|^2, a small difference of the squares, within what these allow."""
    reference = replace(layout.reference, micro=layout.micro)
    for mine, expected in zip(runs[layout][0], runs[reference][0], strict=True):
        assert mine[:3] == pytest.approx(expected[:3], rel=0.02)
        assert mine[3] == pytest.approx(expected[3], abs=0.02 * expected[1])
