"""The learning rate, step by step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.training.schedule import learning_rate

RUN = {"peak": 3e-4, "warmup": 10, "steps": 111, "min_ratio": 0.1}


def test_values_of_a_run() -> None:
    assert learning_rate(0, **RUN) == pytest.approx(3e-5)  # not 0: the first update counts
    assert learning_rate(4, **RUN) == pytest.approx(1.5e-4)
    assert learning_rate(9, **RUN) == pytest.approx(3e-4)
    assert learning_rate(10, **RUN) == pytest.approx(3e-4)
    assert learning_rate(60, **RUN) == pytest.approx(3e-4 * (0.1 + 0.9 / 2))  # half of the cosine
    assert learning_rate(110, **RUN) == pytest.approx(3e-5)
    assert learning_rate(10_000, **RUN) == pytest.approx(3e-5)


@given(peak=st.floats(1e-6, 1), warmup=st.integers(0, 50), steps=st.integers(1, 200), min_ratio=st.floats(0, 1))
def test_it_rises_to_the_peak_and_falls_to_its_share(peak: float, warmup: int, steps: int, min_ratio: float) -> None:
    rates = [learning_rate(step, peak, warmup, steps, min_ratio) for step in range(warmup + steps)]
    slack = 1e-12
    assert all(a <= b + slack for a, b in pairwise(rates[:warmup]))
    assert all(a + slack >= b for a, b in pairwise(rates[warmup:]))
    assert max(rates) == pytest.approx(peak)
    assert min(rates[warmup:]) >= peak * min_ratio * (1 - 1e-9)
    if steps > warmup + 1:
        assert rates[steps - 1] == pytest.approx(peak * min_ratio, abs=1e-12)
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
