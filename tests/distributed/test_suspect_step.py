"""A step that is skipped, computed again on other ranks: a bad device is named, bad data is not taken for one, and nothing changes."""

from typing import Any

import pytest

from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from tests.distributed.suspect_cases import BAD_RANK, suspect

DATA = [Layout(zero, micro=2, dp=2) for zero in (0, 1, 2, 3)]
LAYOUTS = [
    *DATA,
    Layout(zero=1, micro=4, dp=2, precision="bf16"),
    Layout(zero=3, micro=4, tensor=2),
    Layout(zero=1, micro=4, pipeline=2),
    Layout(zero=1, micro=2, ulysses=2),
    Layout(zero=3, micro=4, dp=2, tensor=2),
    Layout(zero=1, micro=2, dp=2, pipeline=2),
]
FAULTS = ("device", "data", "loss", "spike")

pytestmark = pytest.mark.timeout(600)  # the first test waits for all runs


@pytest.fixture(scope="module")
def runs() -> dict[tuple[Layout, str, bool], list[dict[str, Any]]]:
    """[rank] of each layout, fault, and whether the step was computed again."""
    found = {}
    for world_size in (2, 4):
        keys = [
            (layout, fault, recompute)
            for layout in LAYOUTS if layout.world_size == world_size
            for fault in FAULTS
            for recompute in ((False, True) if layout.dp == 2 or fault == "data" else (True,))
        ]  # fmt: skip
        results = run_distributed([(suspect, key) for key in keys], world_size)
        found |= dict(zip(keys, results, strict=True))
    return found


def of_one_mind(ranks: list[dict[str, Any]]) -> tuple[str, list[int]]:
    assert all(
        (rank["kind"], rank["ranks"], rank["told"]) == tuple(ranks[0][k] for k in ("kind", "ranks", "told"))
        for rank in ranks
    )
    return ranks[0]["kind"], ranks[0]["ranks"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_bad_device_is_named_where_another_rank_can_be_asked(layout: Layout, runs: dict[Any, Any]) -> None:
    kind, ranks = of_one_mind(runs[layout, "device", True])
    assert kind == ("device" if layout.dp > 1 else "data")
    assert ranks == [BAD_RANK]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_data_that_hurts_is_named_by_all_who_read_it(layout: Layout, runs: dict[Any, Any]) -> None:
    kind, ranks = of_one_mind(runs[layout, "data", True])
    readers = [rank for rank in range(layout.world_size) if rank // (layout.tensor * layout.ulysses) % layout.dp == 0]
    assert (kind, ranks) == ("data", readers)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_loss_that_was_wrong_once_is_a_device(layout: Layout, runs: dict[Any, Any]) -> None:
    assert of_one_mind(runs[layout, "loss", True]) == ("device", [BAD_RANK])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_spike_that_comes_again_is_data(layout: Layout, runs: dict[Any, Any]) -> None:
    assert of_one_mind(runs[layout, "spike", True])[0] == "data"


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.dp == 2], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_is_as_it_was(layout: Layout, fault: str, runs: dict[Any, Any]) -> None:
    for rank, plain in zip(runs[layout, fault, True], runs[layout, fault, False], strict=True):
        assert plain["skipped"] == 1
        assert "kind" not in plain
        for key in ("counters", "weights", "skipped"):
            assert rank[key] == plain[key], key
        assert str(rank["losses"]) == str(plain["losses"])
        assert str(rank["state"]) == str(plain["state"])
