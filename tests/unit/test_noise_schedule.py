"""Noise schedules: one expected loss whatever the schedule, and schedules of one's own, which have to be what they say."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, permutations, product
from math import comb, factorial, pi, sin
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_objective import LAYOUT, masked_places, noise, spoken
from ttt_dist.config.loader import load_config
from ttt_dist.config.objective import Objective, ObjectiveStage
from ttt_dist.sequence.corruption import corrupt, draw
from ttt_dist.sequence.noise_schedule import (
    MIN_NOISE,
    SCHEDULES,
    NoiseSchedule,
    noise_schedule,
    require_noise_schedules,
)
from ttt_dist.training.dry_run import describe_objective
from ttt_dist.util.errors import UserError

SQUARE = NoiseSchedule(lambda t: t * t, lambda t: 2 * t)
WRONG_RATE = NoiseSchedule(lambda t: t * t, lambda t: 1.0)
FALLS_SHORT = NoiseSchedule(lambda t: 0.5 * t, lambda t: 0.5)
NO_SCHEDULE = "linear"
OWN = f"{__name__}:SQUARE"


def times(schedule: NoiseSchedule, n: int) -> Iterator[tuple[float, float]]:
    """(t, its weight) of an integral over t in 0..1, exact within the stretches of t whose exact count is one."""
    borders = [0.0]
    for count in range(1, n + 1):
        low, high = borders[-1], 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if schedule.masked_share(middle) * n >= count else (middle, high)
        borders.append(high)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    for low, high in pairwise(borders):
        for node, weight in zip(nodes, weights, strict=True):
            yield float(low + (high - low) * (node + 1) / 2), float(weight * (high - low) / 2)


def noises(masking: str, p: float, n: int) -> Iterator[tuple[list[float], float]]:
    """(numbers of the n tokens, probability) that stand for all there are, at one t."""
    if masking == "exact_count":
        yield from (([(place + 0.5) / n for place in order], 1 / factorial(n)) for order in permutations(range(n)))
    else:
        for masked in product([False, True], repeat=n):
            yield (
                [0.0 if is_masked else 1 - 1e-9 for is_masked in masked],
                p ** sum(masked) * (1 - p) ** (n - sum(masked)),
            )


@pytest.mark.parametrize("masking", ["exact_count", "bernoulli"])
@pytest.mark.parametrize("name", [*SCHEDULES, OWN])
@pytest.mark.parametrize("n", range(1, 5))
def test_every_schedule_has_one_expected_weight_of_every_mask(n: int, name: str, masking: str) -> None:
    """Over all t and all masks, for each token and each set of other masked ones: the linear schedule's, which is that of
    p uniform, from MIN_NOISE on where masks are Bernoulli's."""
    sample, schedule = spoken(n), noise_schedule(name)
    objective = Objective(masking=masking, noise_schedule=name, normalisation="token", p_trunc=0.0)
    expected: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for t, weight in times(schedule, n):
        for numbers, probability in noises(masking, schedule.mask_prob(t), n):
            found = corrupt(sample, LAYOUT, objective, noise(t, np.array([0.0] * 4 + numbers)))
            places = masked_places(found)
            for place in places:
                others = tuple(other for other in places if other != place)
                expected[place, others] += float(found.nar_weights[place]) * probability * weight  # type: ignore[assignment]
    assert len(expected) == n * 2 ** (n - 1)
    for (_, others), value in expected.items():
        s, rest = len(others), n - 1 - len(others)
        wanted = factorial(s) * factorial(rest) / factorial(n)
        if masking == "bernoulli":
            low = sum((-1) ** j * comb(rest, j) * MIN_NOISE ** (s + j + 1) / (s + j + 1) for j in range(rest + 1))
            wanted = (wanted - low) / (1 - MIN_NOISE)
        assert value == pytest.approx(wanted, rel=1e-6)


def test_cosine_masks_more_and_gives_it_less_weight() -> None:
    sample = spoken(100)
    objective = Objective(noise_schedule="cosine", normalisation="token")
    for t, count in ((0.0, 1), (1 / 3, 50), (0.5, 71), (0.9999, 100)):
        found = corrupt(sample, LAYOUT, objective, replace(draw(sample, 0, 0), mix=1, truncate=1, prefix=1, t=t))
        assert len(masked_places(found)) == count
        assert found.nar_weights.max() == pytest.approx(pi / 2 * sin(pi / 2 * (1 - t)) * 100 / count, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sine", "objective.noise_schedule='sine': choose one of linear, cosine, or package.module:name"),
        ("no_such_package:A", "objective.noise_schedule no_such_package:A: there is no module no_such_package"),
        (f"{__name__}:SQUARES", "has no SQUARES; did you mean SQUARE"),
        (f"{__name__}:NO_SCHEDULE", "is no ttt_dist.sequence.noise_schedule.NoiseSchedule"),
        (f"{__name__}:FALLS_SHORT", "masked_share goes from 0 to 0.5; it must go from 0 to 1"),
        (f"{__name__}:WRONG_RATE", r"rate\(0.1\) is 1 but masked_share rises by 0.2 there"),
    ],
)
def test_what_is_no_schedule_is_refused_before_training(name: str, message: str) -> None:
    for objective in (
        Objective(noise_schedule=name),
        Objective(stages=[ObjectiveStage(from_step=0, noise_schedule=name)]),
    ):
        with pytest.raises(UserError, match=message):
            require_noise_schedules(objective)


def test_it_is_told_where_it_is_not_the_linear_one(tmp_path: Path) -> None:
    """Checkpoints know by these words what they were trained by, and older ones know of no schedule."""
    assert "noise_schedule" not in str(Objective())
    assert describe_objective(Objective(noise_schedule="cosine"), 10)[0].startswith(
        "ttt, masking exact_count, noise_schedule cosine"
    )
    assert Objective(kind="ar", noise_schedule="cosine").past(9) == Objective(kind="ar").past(9)
    (tmp_path / "c.yaml").write_text("objective: {stages: [{}, {from_step: 4, noise_schedule: cosine}]}")
    config = load_config(tmp_path / "c.yaml", [f"objective.noise_schedule={OWN}"])
    assert [config.objective.at(step).noise_schedule for step in (3, 4)] == [OWN, "cosine"]
    require_noise_schedules(config.objective)
