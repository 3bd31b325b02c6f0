"""Which steps are applied, and the counters that a checkpoint carries."""

import json

import pytest

from ttt_dist.config.run import GuardConfig
from ttt_dist.training.skip_step import FEWEST_NORMS, NUM_NORMS, SkipStep

NAN, INF = float("nan"), float("inf")


def steps(guard: SkipStep, norms: list[float]) -> list[bool]:
    """Whether each step is skipped, where the optimizer asks twice for each, as for two groups of weights."""
    skipped = []
    for norm in norms:
        asked = [guard.accepts(norm), guard.accepts(norm)]
        skipped.append(guard.end_step(norm))
        assert asked == [not skipped[-1]] * 2
    return skipped


def test_norms_that_are_not_finite_are_skipped_and_counted() -> None:
    guard = SkipStep(GuardConfig(max_skipped=2))
    assert steps(guard, [1.0, NAN, 2.0, INF, NAN]) == [False, True, False, True, True]
    assert (guard.skipped, guard.in_a_row, guard.gives_up) == (3, 2, False)
    steps(guard, [-INF])
    assert guard.gives_up
    steps(guard, [1.0])
    assert (guard.skipped, guard.in_a_row, guard.gives_up) == (4, 0, False)


def test_a_step_that_deepspeed_skipped_by_itself_counts_too() -> None:
    guard = SkipStep(GuardConfig())
    assert guard.end_step(INF)
    assert guard.skipped == 1


def test_no_skips_allowed_means_the_first_ends_the_run() -> None:
    guard = SkipStep(GuardConfig(max_skipped=0))
    steps(guard, [1.0])
    assert not guard.gives_up
    steps(guard, [NAN])
    assert guard.gives_up


def test_spikes_are_skipped_against_the_median_of_accepted_norms() -> None:
    guard = SkipStep(GuardConfig(spike_factor=5.0))
    assert steps(guard, [100.0] + [1.0] * (FEWEST_NORMS - 1)) == [False] * FEWEST_NORMS
    assert steps(guard, [5.0, 5.1, 100.0, 1.0]) == [False, True, True, False]
    steps(guard, [2.0] * NUM_NORMS)  # the median moves with what is accepted, and forgets
    assert steps(guard, [9.9, 10.1]) == [False, True]


def test_between_two_steps_nothing_is_applied_or_counted() -> None:
    guard = SkipStep(GuardConfig(spike_factor=5.0))
    steps(guard, [1.0] * FEWEST_NORMS + [100.0])
    before = guard.state
    with guard.refusing():
        assert not guard.accepts(1.0) and not guard.accepts(NAN)
    assert guard.state == before
    assert [guard.is_suspect(norm) for norm in (1.0, 5.1, NAN, INF)] == [False, True, True, True]
    assert steps(guard, [1.0]) == [False]


def test_without_the_setting_nothing_is_a_spike() -> None:
    assert not any(steps(SkipStep(GuardConfig()), [1.0] * 100 + [1e9]))


@pytest.mark.parametrize("cut", [3, 17, 40])
def test_a_guard_of_a_checkpoint_decides_as_the_one_that_was_saved(cut: int) -> None:
    norms = [1.0 + 0.1 * (i % 7) for i in range(60)]
    norms[20] = NAN
    norms[45] = 50.0
    config = GuardConfig(spike_factor=3.0)
    going_on, first = SkipStep(config), SkipStep(config)
    expected = steps(going_on, norms)
    begun = steps(first, norms[:cut])
    resumed = SkipStep(config, json.loads(json.dumps(first.state)))
    assert begun + steps(resumed, norms[cut:]) == expected
    assert resumed.state == going_on.state
    assert sum(expected) == 2
