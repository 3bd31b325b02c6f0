"""Saving while training goes on: the same values as of a save that keeps it waiting, complete or invisible, in all layouts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.distributed.async_cases import beside_training, closed_by_an_error, failure_on_one_rank
from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed

LAYOUTS = {
    1: [Layout(), Layout(0, precision="bf16", tied=True)],
    2: [
        Layout(0, 2, tensor=2),
        Layout(1, 2, dp=2),
        Layout(2, 2, dp=2, precision="bf16"),
        Layout(3, 2, dp=2),
        Layout(3, 2, dp=2, precision="bf16", tied=True),
        Layout("2_offload", 2, dp=2),
        Layout("3_offload", 2, dp=2),
        Layout(1, 2, pipeline=2),
        Layout(1, 2, pipeline=2, precision="bf16"),
    ],
    4: [Layout(3, 2, dp=2, tensor=2), replace(Layout(1, 2, pipeline=2, tensor=2), tied=True, kv_heads=1)],
}
TWO = Layout(1, 2, dp=2)

pytestmark = pytest.mark.timeout(1500)  # the first test waits for all runs


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The results of all layouts, by their names, on rank 0."""
    results = {}
    for world_size, layouts in LAYOUTS.items():
        rows = run_distributed([(beside_training, (layout,)) for layout in layouts], world_size)
        results |= {
            str(layout): [row[rank] for rank in range(world_size)] for layout, row in zip(layouts, rows, strict=True)
        }
    return results


@pytest.mark.slow
@pytest.mark.parametrize("layout", [str(layout) for layouts in LAYOUTS.values() for layout in layouts])
def test_a_save_beside_training_holds_the_state_of_its_step(layout: str, found: dict[str, Any]) -> None:
    for differences, undisturbed, beside, resumed in found[layout]:
        assert differences == []
        assert undisturbed == beside == resumed


@pytest.mark.slow
def test_a_failed_write_is_told_and_the_next_save_succeeds() -> None:
    for told, left, next_is_whole in run_distributed([(failure_on_one_rank, (TWO,))], 2)[0]:
        assert told.startswith("rank 1 on ") and "No space left" in told
        assert left == []
        assert next_is_whole


@pytest.mark.slow
def test_what_is_in_flight_at_an_error_becomes_complete_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (closed_by_an_error, (TWO, lost)) for lost in (False, True)
    ]
    whole, lost = run_distributed(cases, 2)
    assert whole == [(["latest", "step-00000001"], None)] * 2
    assert lost[0] == ([], "rank(s) 1 have not written their part")
