"""Figures of a run over several processes: NAR losses by bins of p in every layout, times that add up, who is slow."""

from typing import Any

import numpy as np
import pytest

from tests.distributed.cases import GLOBAL_BATCH, Layout
from tests.distributed.launch import run_distributed
from tests.distributed.watched import NUM_SOURCES, record_with_a_straggler, watched_steps

PIPELINE = Layout(0, 2, pipeline=2)
LAYOUTS = [
    Layout(0, 2),
    Layout(0, 4, tensor=2),
    Layout(3, 4, tensor=2, sequence_parallel=True),
    PIPELINE,
    Layout(1, 4, ulysses=2),
    Layout(3, 2, dp=2),
]
STEPS, DELAY_S = 2, 0.5
SLOW = [
    Layout(3, 2, dp=2),
    Layout(0, 4, tensor=2),
    Layout(3, 4, tensor=2, sequence_parallel=True),
    Layout(1, 4, pipeline=2),
    Layout(1, 4, ulysses=2),
]

pytestmark = pytest.mark.timeout(600)  # the first test waits for all runs


@pytest.fixture(scope="module")
def runs() -> dict[Any, Any]:
    """[rank] of every layout, and of the runs with a straggler."""
    cases: dict[Any, Any] = {layout: (watched_steps, (layout, STEPS)) for layout in (Layout(), *LAYOUTS)}
    cases |= {("slow", layout): (record_with_a_straggler, (layout, 1, DELAY_S)) for layout in SLOW}
    results = {}
    for world_size in (1, 2):
        keys = [key for key in cases if (2 if isinstance(key, tuple) else key.world_size) == world_size]
        results |= dict(zip(keys, run_distributed([cases[key] for key in keys], world_size), strict=True))
    return results


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bins_of_p_do_not_depend_on_the_layout(layout: Layout, runs: dict[Any, Any]) -> None:
    for rank in runs[layout]:
        for mine, expected in zip(rank, runs[Layout()][0], strict=True):
            assert sum(number for _, number in mine["bins"]) > 0
            for (loss, number), (expected_loss, expected_number) in zip(mine["bins"], expected["bins"], strict=True):
                assert number == expected_number
                assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("layout", [Layout(), *LAYOUTS], ids=str)
def test_losses_of_sources_and_tasks_make_the_loss_in_every_layout(layout: Layout, runs: dict[Any, Any]) -> None:
    for rank in runs[layout]:
        for mine, expected in zip(rank, runs[Layout()][0], strict=True):
            assert mine["sums"].shape == (3, NUM_SOURCES, 4) and (mine["units"].sum(axis=1) > 0).all()
            assert np.count_nonzero(mine["sums"]) > 2 * NUM_SOURCES
            whole = np.array([loss * mine["num_loss_units"] for loss in mine["losses"].values()])
            np.testing.assert_allclose(mine["sums"].sum(axis=(1, 2)), whole, rtol=1e-6)
            assert mine["units"].sum() == mine["num_loss_units"]
            np.testing.assert_array_equal(mine["units"], expected["units"])
            np.testing.assert_allclose(mine["sums"], expected["sums"], rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_phases_add_up_to_the_step(layout: Layout, runs: dict[Any, Any]) -> None:
    passes = {"forward_backward"} if layout.pipeline > 1 else {"forward", "backward"}
    for rank in runs[layout]:
        for step in rank:
            assert set(step["seconds"]) == {"data", "optimizer", "communication"} | passes
            assert min(step["seconds"].values()) > 0
            assert sum(step["seconds"].values()) == pytest.approx(step["wall_s"], rel=0.02, abs=0.01)
            assert step["own_s"] == pytest.approx(sum(step["seconds"].values()) - step["seconds"]["communication"])


@pytest.mark.parametrize("layout", SLOW, ids=str)
def test_who_waits_communicates_and_who_is_slow_is_named(layout: Layout, runs: dict[Any, Any]) -> None:
    """Rank 0 waits for rank 1 in a collective: of DeepSpeed's in each layer, of Megatron's, between stages, around attention."""
    quick, slow = runs["slow", layout]
    lingered_s = DELAY_S * GLOBAL_BATCH / (layout.micro * layout.dp)  # in each micro-batch
    assert quick["communication_s"] > max(0.8 * lingered_s, slow["communication_s"])
    passes = "forward_backward_s" if layout.pipeline > 1 else "forward_s"
    assert slow[passes] > max(lingered_s, quick[passes])
    for record in (quick, slow):
        assert record["slowest_rank"] == 1
        assert record["slowest_ratio"] > 1.2
