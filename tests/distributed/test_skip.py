"""A gradient that is not finite, on one process of many, or a spike: no process applies the step, in any layout."""

import math

import pytest

from tests.distributed.cases import Layout, skip
from tests.distributed.launch import run_distributed

LAYOUTS = [
    Layout(zero=0, micro=4, dp=2),
    Layout(zero=0, micro=4, dp=2, precision="bf16"),
    Layout(zero=1, micro=4, dp=2),
    Layout(zero=1, micro=4, dp=2, precision="bf16"),
    Layout(zero=2, micro=2, dp=2, precision="bf16"),
    Layout(zero=3, micro=4, dp=2),
    Layout(zero=3, micro=4, dp=2, precision="bf16"),
    Layout(zero=0, tensor=2),
    Layout(zero=3, tensor=2),
    Layout(zero=1, micro=4, pipeline=2),
    Layout(zero=1, micro=4, pipeline=2, precision="bf16"),
]
Outcome = list[tuple[list[bool], list[float], float]]


@pytest.fixture(scope="module")
def outcomes() -> dict[Layout, list[Outcome]]:
    """For each layout what both ranks saw: nothing wrong, NaN on rank 0, NaN on rank 1, a spike."""
    ways = ((None, 0.0), (0, 0.0), (1, 0.0), (None, 2.0))
    cases = [(skip, (layout, *way)) for layout in LAYOUTS for way in ways]
    results = iter(run_distributed(cases, world_size=2))
    return {layout: [next(results) for _ in ways] for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_is_skipped_by_all_or_by_none(layout: Layout, outcomes: dict[Layout, list[Outcome]]) -> None:
    undisturbed, *disturbed = outcomes[layout]
    losses = undisturbed[0][1]
    assert [skipped for skipped, _, _ in undisturbed] == [[False, False, False]] * 2
    assert undisturbed[0][2] > 0
    for ranks in disturbed:
        for skipped, found, _ in ranks:
            assert skipped == [False, True, False]
            assert found[:2] == losses[:2]  # the loss itself was finite, and what came before is as it was
            assert math.isfinite(found[2]) and found[2] != losses[2]
        assert ranks[0][2] == 0.0
    assert disturbed[0][0][1] == disturbed[1][0][1] == disturbed[2][0][1]
