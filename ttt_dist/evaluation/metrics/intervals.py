"""Confidence intervals of scores: how much a figure would change with another draw of the items.

They are pure functions of the items, whatever order these come in.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
Z = 1.959964  # standard normal quantile of LEVEL, two-sided
Interval = tuple[float, float]


def confidence_interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    ids: Sequence[str],
    values: Sequence[Sequence[float]],
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap over items (Efron and Tibshirani 1993, chapter 13), 95 %, rounded to six digits.

    `values` [n, k] are what an item adds to a corpus; `statistic` makes of sums [R, k] the scores [R], NaN where there
    is none, such as `ratio`. None with fewer than two items, or where no resample has a score.
    """
    if len(ids) < 2:
        return None
    order = sorted(range(len(ids)), key=lambda item: (ids[item], tuple(values[item])))
    items = np.asarray([values[item] for item in order], dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(items), size=len(items)) for _ in range(RESAMPLES))
    sums = np.stack([np.bincount(draw, minlength=len(items)) @ items for draw in draws])
    scores = statistic(sums)
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return None
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 6), round(float(high), 6)


def ratio(sums: np.ndarray) -> np.ndarray:
    """[R, 2] -> [R]: first over second, NaN where the second is 0. WER of (edits, length), a mean of (value, 1)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def wilson_interval(num_right: int, num_items: int) -> Interval | None:
    """95 % interval of an accuracy (Wilson 1927); None without items.

    Better than the bootstrap here: with all items right or all wrong it still says how few they were.
    """
    if not num_items:
        return None
    share, z2 = num_right / num_items, Z * Z / num_items
    centre = share + z2 / 2
    spread = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4)
    low, high = (centre - spread) / (1 + z2), (centre + spread) / (1 + z2)
    return round(max(low, 0.0), 6), round(min(high, 1.0), 6)
