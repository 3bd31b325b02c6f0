"""The learning rate, step by step."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.config.run import TrainConfig
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.training.schedule import learning_rate

RUN = TrainConfig(lr=3e-4, warmup=10, steps=111, min_lr_ratio=0.1)
EIGHT = StepSizes.of(8)
SCHEDULES = get_args(get_type_hints(TrainConfig)["schedule"])


def rate(step: int, train: TrainConfig = RUN, sizes: StepSizes = EIGHT, **more: Any) -> float:
    return learning_rate(step, replace(train, **more), sizes)


def test_values_of_a_run() -> None:
    assert rate(0) == pytest.approx(3e-5)  # not 0: the first update counts
    assert rate(4) == pytest.approx(1.5e-4)
    assert rate(9) == pytest.approx(3e-4)
    assert rate(10) == pytest.approx(3e-4)
    assert rate(60) == pytest.approx(3e-4 * (0.1 + 0.9 / 2))  # half of the cosine
    assert rate(110) == pytest.approx(3e-5)
    assert rate(10_000) == pytest.approx(3e-5)
    assert rate(0, warmup=0, steps=1) == 3e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(peak=st.floats(1e-6, 1), warmup=st.integers(0, 50), steps=st.integers(1, 200), min_ratio=st.floats(0, 1))
def test_it_rises_to_the_peak_and_falls(schedule: Any, peak: float, warmup: int, steps: int, min_ratio: float) -> None:
    train = TrainConfig(lr=peak, warmup=warmup, steps=steps, min_lr_ratio=min_ratio, schedule=schedule)
    rates = [rate(step, train) for step in range(warmup + steps)]
    slack = 1e-12
    assert all(a <= b + slack for a, b in pairwise(rates[:warmup]))
    assert all(a + slack >= b for a, b in pairwise(rates[warmup:]))
    assert max(rates) == pytest.approx(peak) or (schedule == "wsd" and warmup == 0)
    assert min(rates[warmup:]) >= peak * min_ratio * (1 - 1e-9)
    if schedule in ("cosine", "linear") and steps > warmup + 1:
        assert rates[steps - 1] == pytest.approx(peak * min_ratio, abs=1e-12)
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)


def test_each_schedule_in_the_middle_and_at_its_end() -> None:
    found = {name: [rate(step, schedule=name) / 3e-4 for step in (9, 60, 110)] for name in SCHEDULES}
    assert found["linear"] == pytest.approx([1, 0.1 + 0.9 * 0.5, 0.1])
    assert found["constant"] == pytest.approx([1, 1, 1])
    assert found["inverse_sqrt"] == pytest.approx([1, math.sqrt(10 / 61), math.sqrt(10 / 111)])
    assert found["wsd"] == pytest.approx([1, 1, 0.1])
    decay = [rate(step, schedule="wsd", decay_steps=5) / 3e-4 for step in (105, 106, 107, 108, 109, 110)]
    assert decay == pytest.approx([1, *(0.1 + 0.9 * (1 - math.sqrt(done / 5)) for done in (1, 2, 3, 4, 5))])
    assert [rate(step, schedule="wsd", decay_steps=1) / 3e-4 for step in (109, 110)] == pytest.approx([1, 0.1])


def test_a_decay_branches_off_a_stable_run_at_any_step() -> None:
    long = replace(RUN, steps=100_000, schedule="wsd", decay_steps=1000)
    branch = replace(long, steps=550, decay_steps=50)
    assert [rate(step, branch) for step in range(500)] == [rate(step, long) for step in range(500)]
    assert rate(499, branch) > rate(500, branch) > rate(501, branch) > rate(549, branch) == pytest.approx(3e-5)


def test_by_tokens_a_larger_batch_takes_the_schedule_further() -> None:
    sizes = StepSizes.of(2, [(50, 6)])  # steps before 50 read 100 packs, those up to 110 another 366
    for schedule in SCHEDULES:
        plain = replace(RUN, schedule=schedule)
        assert [rate(step, plain, StepSizes.of(4), schedule_by="tokens") for step in range(120)] == pytest.approx(
            [rate(step, plain) for step in range(120)]
        )
    assert rate(50, sizes=sizes, schedule="linear", schedule_by="tokens") == pytest.approx(
        3e-4 * (0.1 + 0.9 * (1 - (100 - 20) / (100 + 60 * 6 - 20)))
    )
