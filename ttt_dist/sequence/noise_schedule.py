"""Noise schedules: how much is masked at time t, and what that weighs in the loss.

With s(t) the share of the tokens that is masked, absorbing diffusion is bounded by the integral over t in 0..1 of
s'(t) / s(t) times the cross-entropy of what is masked (arXiv 2406.04329; alpha there is 1 - s). In terms of s
this is the integral of 1 / s: every schedule that rises from 0 to 1 has the same bound. It decides how often which share is
drawn, and so where the gradient is noisy, and nothing else.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from ttt_dist.config.objective import Objective
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_named

MIN_NOISE = 1e-3  # p = (1 - 1e-3) s + 1e-3, so that 1/p stays finite
KEY = "objective.noise_schedule"


class NoiseSchedule(NamedTuple):
    """A share of masked tokens that rises from 0 at t = 0 to 1 at t = 1."""

    masked_share: Callable[[float], float]
    """s(t)."""
    rate: Callable[[float], float]
    """Its derivative s'(t)."""

    def mask_prob(self, t: float) -> float:
        """Probability that a maskable token is masked (bernoulli)."""
        return (1.0 - MIN_NOISE) * self.masked_share(t) + MIN_NOISE


SCHEDULES = {
    "linear": NoiseSchedule(lambda t: t, lambda t: 1.0),
    # Much noise more often than little: a quarter of the draws mask more than 92 % (MaskGIT, arXiv 2202.04200).
    "cosine": NoiseSchedule(lambda t: math.sin(math.pi / 2 * t), lambda t: math.pi / 2 * math.cos(math.pi / 2 * t)),
}


@cache
def noise_schedule(name: str) -> NoiseSchedule:
    """The schedule of a name, or one's own by `package.module:name`. Raises UserError where it is none."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    if ":" not in name:
        raise UserError(f"{KEY}={name!r}: choose one of {', '.join(SCHEDULES)}, or package.module:name")
    found = load_named(name, KEY)
    if not isinstance(found, NoiseSchedule):
        raise UserError(f"{KEY}={name!r} is no {NoiseSchedule.__module__}.NoiseSchedule; make it one")
    _require_consistent(found, name)
    return found


def require_noise_schedules(objective: Objective) -> None:
    """Raise UserError where a schedule that some step is trained by cannot be had."""
    for settings in (objective, *(objective.at(stage.from_step) for stage in objective.stages)):
        noise_schedule(settings.noise_schedule)


def _require_consistent(schedule: NoiseSchedule, name: str) -> None:
    """Raise UserError unless it goes from 0 to 1 at its own rate: with another one the loss would be no bound of anything."""
    ends = schedule.masked_share(0.0), schedule.masked_share(1.0)
    if max(abs(ends[0]), abs(ends[1] - 1.0)) > 1e-9:
        raise UserError(f"{KEY}={name!r}: masked_share goes from {ends[0]:g} to {ends[1]:g}; it must go from 0 to 1")
    step = 1e-6
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        slope = (schedule.masked_share(t + step) - schedule.masked_share(t - step)) / (2 * step)
        rate = schedule.rate(t)
        if rate < 0.0 or abs(rate - slope) > 1e-4 * max(1.0, slope):
            raise UserError(f"{KEY}={name!r}: rate({t}) is {rate:g} but masked_share rises by {slope:g} there; mend it")
