"""A step that is skipped, computed again on other ranks: a bad device is named, bad data is not taken for one, and nothing changes."""

from functools import cache
from typing import Any

import pytest

from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from tests.distributed.suspect_cases import BAD_RANK, suspect

LAYOUTS = [
    *(Layout(zero, micro=2, dp=2) for zero in (1, 3)),
    Layout(zero=1, micro=4, dp=2, precision="bf16"),
    Layout(zero=3, micro=4, tensor=2),
    Layout(zero=1, micro=4, pipeline=2),
    Layout(zero=1, micro=2, ulysses=2),
    Layout(zero=3, micro=4, dp=2, tensor=2),
]
FAULTS = ("device", "data", "loss", "spike")

pytestmark = pytest.mark.timeout(600)  # the first test of each size waits for all its runs


Runs = dict[tuple[Layout, str, bool], list[dict[str, Any]]]
"""[rank] by layout, fault, and whether the step was computed again."""


@cache
def runs_on(world_size: int) -> Runs:
    """All runs on so many processes."""
    layouts = [layout for layout in LAYOUTS if layout.world_size == world_size]
    keys = [(layout, fault, True) for layout in layouts for fault in FAULTS]
    keys += [(layout, "data", False) for layout in layouts]
    return dict(zip(keys, run_distributed([(suspect, key) for key in keys], world_size), strict=True))


@pytest.fixture
def runs(layout: Layout) -> Runs:
    """Those of as many processes as the layout has."""
    return runs_on(layout.world_size)


def of_one_mind(ranks: list[dict[str, Any]]) -> tuple[str, list[int]]:
    assert all(
        (rank["kind"], rank["ranks"], rank["told"]) == tuple(ranks[0][k] for k in ("kind", "ranks", "told"))
        for rank in ranks
    )
    return ranks[0]["kind"], ranks[0]["ranks"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_bad_device_is_named_where_another_rank_can_be_asked(layout: Layout, runs: Runs) -> None:
    kind, ranks = of_one_mind(runs[layout, "device", True])
    assert kind == ("device" if layout.dp > 1 else "data")
    assert ranks == [BAD_RANK]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_data_that_hurts_is_named_by_all_who_read_it(layout: Layout, runs: Runs) -> None:
    kind, ranks = of_one_mind(runs[layout, "data", True])
    readers = [rank for rank in range(layout.world_size) if rank // (layout.tensor * layout.ulysses) % layout.dp == 0]
    assert (kind, ranks) == ("data", readers)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_loss_that_was_wrong_once_is_a_device(layout: Layout, runs: Runs) -> None:
    assert of_one_mind(runs[layout, "loss", True]) == ("device", [BAD_RANK])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_spike_that_comes_again_is_data(layout: Layout, runs: Runs) -> None:
    assert of_one_mind(runs[layout, "spike", True])[0] == "data"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_is_as_it_was(layout: Layout, fault: str, runs: Runs) -> None:
    """Whatever was computed again: weights, what a checkpoint keeps beside them, and the loss of the next step."""
    for rank, plain in zip(runs[layout, fault, True], runs[layout, "data", False], strict=True):
        assert plain["skipped"] == rank["skipped"] == 1
        assert "kind" not in plain
        assert rank["weights"] == plain["weights"]
        assert rank["losses"][2] == plain["losses"][2]
        assert rank["state"] == plain["state"]
        assert fault != "data" or rank["counters"] == plain["counters"]  # DeepSpeed counts by itself what is not finite
