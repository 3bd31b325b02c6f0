"""Intervals: independent of the order of items, right on known distributions, and absent where nothing can be said."""

from random import Random

import numpy as np
import pytest

from ttt_dist.evaluation.metrics.intervals import confidence_interval, ratio, wilson_interval


def drawn(count: int) -> tuple[list[str], list[tuple[float, float]]]:
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 20, count)
    return [f"u{n}" for n in range(count)], [(int(generator.binomial(n, 0.2)), int(n)) for n in lengths]


def test_the_order_of_items_does_not_matter() -> None:
    ids, values = drawn(60)
    found = confidence_interval(ratio, ids, values)
    for seed in range(3):
        order = Random(seed).sample(range(60), 60)
        assert confidence_interval(ratio, [ids[n] for n in order], [values[n] for n in order]) == found
    same_ids = ["u"] * 60
    assert confidence_interval(ratio, same_ids, values) == confidence_interval(ratio, same_ids, values[::-1])
    assert confidence_interval(ratio, ids, values, seed=1) != found


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = confidence_interval(ratio, [f"{n:03}" for n in range(400)], [(value, 1) for value in values])
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_a_ratio_holds_its_value_and_narrows_with_items() -> None:
    widths = []
    for count in (40, 4000):
        ids, values = drawn(count)
        low, high = confidence_interval(ratio, ids, values)
        errors, words = np.sum(values, axis=0)
        assert low < errors / words < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.4)


def test_nothing_is_said_of_too_little() -> None:
    assert confidence_interval(ratio, [], []) is None
    assert confidence_interval(ratio, ["a"], [(1, 2)]) is None
    assert confidence_interval(ratio, ["a", "b"], [(1, 0), (2, 0)]) is None  # no reference has a word
    assert confidence_interval(ratio, ["a", "b"], [(1, 2), (1, 2)]) == (0.5, 0.5)
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize(
    ("right", "items", "wanted"),
    [
        (81, 263, (0.2553, 0.3662)),
        (0, 10, (0.0, 0.277533)),
        (10, 10, (0.722467, 1.0)),
        (1, 2, (0.094531, 0.905469)),
    ],
)
def test_wilson(right: int, items: int, wanted: tuple[float, float]) -> None:
    """The first as printed by Newcombe (1998), Statistics in Medicine 17, table I."""
    assert wilson_interval(right, items) == pytest.approx(wanted, abs=5e-5)
