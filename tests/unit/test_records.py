"""The record of some steps: means, rates and bins over all of them, the losses of the last."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import Config, TelemetryConfig
from ttt_dist.model.loss import p_bin_name
from ttt_dist.sequence.corruption import NUM_P_BINS
from ttt_dist.sequence.loss_terms import term_names
from ttt_dist.sequence.sample import TASKS
from ttt_dist.training import step_metrics
from ttt_dist.training.flops import ModelFlops
from ttt_dist.training.group_losses import GroupLosses
from ttt_dist.training.step import Counts, Losses, PBin, StepResult
from ttt_dist.training.step_metrics import MetricsAccumulator, peak_tflops, slowest
from ttt_dist.training.step_timing import StepTimes


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of the other ranks of three; ours is rank 0."""
    others = {1: 1.0, 2: 1.0}

    def gather(output: torch.Tensor, mine: torch.Tensor) -> None:
        output.copy_(torch.tensor([float(mine), *others.values()]))

    monkeypatch.setattr(dist, "get_world_size", lambda: 1 + len(others))
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "all_gather_into_tensor", gather)
    return others


def step(
    loss: float,
    bins: list[tuple[float, float]],
    own_s: float | None = 1.5,
    groups: GroupLosses | None = None,
    square: float | None = None,
) -> StepResult:
    times = {"data": 0.25, "forward": 0.5, "backward": 0.75, "communication": 0.25, "optimizer": 0.25}
    counts = Counts(
        num_loss_units=8.0,
        ar_tokens=10.0,
        nar_tokens=20.0,
        useful_tokens=100.0,
        visible_pairs=1000.0,
        group_units=(0.0,) * 4,
        micro_batches=4.0,
    )
    return StepResult(
        losses=Losses({"ar": loss / 2, "nar": loss / 2}), grad_norm=3.0, micro_batch_square=square, own_sums=torch.zeros(2),
        nar_by_p=[PBin(*pair) for pair in bins], groups=groups or GroupLosses.of([], ()), counts=counts,
        times=StepTimes(times, own_s),
    )  # fmt: skip


NOTHING = [(0.0, 0.0)] * NUM_P_BINS


def window(peak_flops: float | None = None) -> MetricsAccumulator:
    return MetricsAccumulator(flops=ModelFlops(per_token=2.0, per_target=3.0, per_pair=4.0), peak_flops=peak_flops)


def test_times_are_means_that_add_up(ranks: dict[int, float]) -> None:
    steps = window()
    for data_s in (0.5, 1.5):
        steps.add(step(1.0, NOTHING), data_s, data_s + 2.0)
    record = steps.record(lr=0.1)
    phases = ("data_s", "forward_s", "backward_s", "communication_s", "optimizer_s")
    assert [record[name] for name in phases] == [1.25, 0.5, 0.75, 0.25, 0.25]
    assert sum(record[name] for name in phases) == record["step_s"] == 3.0
    assert record["data_share"] == pytest.approx(1.25 / 3)
    assert record["useful_tokens_per_s"] == 200 / 6
    assert "forward_backward_s" not in record and "mfu" not in record


def test_a_record_begins_anew(ranks: dict[int, float]) -> None:
    steps = window()
    steps.add(step(9.0, [(9.0, 9.0)] * NUM_P_BINS), 5.0, 9.0)
    steps.record(lr=0.1)
    steps.add(step(1.0, NOTHING), 0.5, 2.5)
    record = steps.record(lr=0.2)
    assert (record["loss"], record["step_s"], record["lr"], record["data_s"]) == (1.0, 2.5, 0.2, 0.75)
    assert record["nar_tokens_p0.0-0.2"] == 0


def test_mfu(ranks: dict[int, float]) -> None:
    steps = window(peak_flops=1000.0)
    for _ in range(2):
        steps.add(step(1.0, NOTHING), 0.0, 4.0)
    assert steps.record(lr=0.1)["mfu"] == (2 * 100 + 3 * 30 + 4 * 1000) / 4.0 / 1000.0


def test_bins_are_means_over_tokens_of_all_sound_steps(ranks: dict[int, float]) -> None:
    steps = window()
    steps.add(step(1.0, [(10.0, 5.0), (0.0, 0.0), *NOTHING[2:]]), 0.0, 1.0)
    steps.add(step(math.nan, [(math.nan, 5.0)] * NUM_P_BINS), 0.0, 1.0)
    steps.add(step(1.0, [(2.0, 1.0), (0.0, 0.0), *NOTHING[2:-1], (6.0, 2.0)]), 0.0, 1.0)
    record = steps.record(lr=0.1)
    assert (record["nar_loss_p0.0-0.2"], record["nar_tokens_p0.0-0.2"]) == (2.0, 6.0)
    assert (record["nar_loss_p0.8-1.0"], record["nar_tokens_p0.8-1.0"]) == (3.0, 2.0)
    assert "nar_loss_p0.2-0.4" not in record and record["nar_tokens_p0.2-0.4"] == 0


def test_losses_of_sources_and_tasks_are_over_their_own_units_and_make_the_loss(ranks: dict[int, float]) -> None:
    """Two sources; of the second one, text alone and speech of two kinds."""
    steps = window()
    steps.sources = ("books", "calls")
    sums = np.zeros((len(term_names()), 2, len(TASKS)))
    sums[0, 0, 0], sums[0, 1], sums[1, 1, 1] = 6.0, [1.0, 2.0, 0.0, 3.0], 4.0
    units = np.array([[3.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 2.0]])
    broken = GroupLosses(np.full_like(sums, math.nan), units)
    steps.add(step(math.nan, NOTHING, groups=broken), 0.0, 1.0)
    for _ in range(2):
        steps.add(step(2.0, NOTHING, groups=GroupLosses(sums, units)), 0.0, 1.0)
    found = {key: value for key, value in steps.record(lr=0.1).items() if key.startswith(("source_", "task_"))}
    assert found == {
        "source_books_share": 3 / 8, "source_books_ar_loss": 2.0,
        "source_calls_share": 5 / 8, "source_calls_ar_loss": 6 / 5, "source_calls_nar_loss": 4 / 5,
        "task_text_to_text_share": 4 / 8, "task_text_to_text_ar_loss": 7 / 4,
        "task_text_to_speech_share": 2 / 8, "task_text_to_speech_ar_loss": 1.0, "task_text_to_speech_nar_loss": 2.0,
        "task_speech_to_speech_share": 2 / 8, "task_speech_to_speech_ar_loss": 1.5,
    }  # fmt: skip
    for kind in ("source", "task"):
        parts = [key.removesuffix("_share") for key in found if key.startswith(kind) and key.endswith("_share")]
        for term, whole in (("ar", 12 / 8), ("nar", 4 / 8)):
            assert sum(found[f"{p}_share"] * found.get(f"{p}_{term}_loss", 0.0) for p in parts) == pytest.approx(whole)
    steps.sources = ("train",)
    alone = GroupLosses(sums[:, :1], units[:1])
    steps.add(step(2.0, NOTHING, groups=alone), 0.0, 1.0)
    assert not [key for key in steps.record(lr=0.1) if key.startswith("source_")]


def test_names_of_bins() -> None:
    assert [p_bin_name(number) for number in range(NUM_P_BINS)] == [
        "p0.0-0.2",
        "p0.2-0.4",
        "p0.4-0.6",
        "p0.6-0.8",
        "p0.8-1.0",
    ]


def test_the_slowest_rank_is_that_of_the_most_own_work(ranks: dict[int, float]) -> None:
    ranks[2] = 5.0
    assert slowest(2.0) == {"slowest_rank": 2, "slowest_ratio": 2.5}
    assert slowest(20.0) == {"slowest_rank": 0, "slowest_ratio": 4.0}


def test_where_own_work_is_unknown_nobody_is_called_slow(ranks: dict[int, float]) -> None:
    assert slowest(None) == {}
    ranks[1] = math.nan
    assert slowest(1.0) == {}
    steps = window()
    steps.add(step(1.0, NOTHING, own_s=None), 0.0, 1.0)
    ranks[1] = 1.0
    assert not [name for name in steps.record(0.1) if name.startswith("slowest")]


def test_own_work_is_that_of_all_steps_that_measured_it_and_their_data(ranks: dict[int, float]) -> None:
    ranks |= {1: 4.0, 2: 4.0}
    steps = window()
    for own_s in (1.5, None, 1.5):
        steps.add(step(1.0, NOTHING, own_s=own_s), 0.5, 3.0)
    assert steps.record(0.1)["slowest_ratio"] == 1.0
    steps.add(step(1.0, NOTHING, own_s=None), 0.5, 3.0)
    assert "slowest_ratio" not in steps.record(0.1)  # what was measured before the last record does not count


def test_the_peak_is_that_of_all_devices(ranks: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        model=ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=16),
        telemetry=TelemetryConfig(peak_tflops=2.0),
    )
    assert MetricsAccumulator.of_run(config, 100).peak_flops == 6e12
    assert peak_tflops(0.5) == 0.5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_tflops(0.0) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert step_metrics.peak_tflops(0.0) == 312.0
