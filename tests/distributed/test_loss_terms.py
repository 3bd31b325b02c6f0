"""A term of the loss that is registered from outside has one value in every layout, in training and in evaluation."""

from typing import Any

import numpy as np
import pytest

from tests.distributed.cases import Layout, deviation
from tests.distributed.launch import run_distributed
from tests.distributed.term_cases import losses_with_a_term

STEPS = 3
LAYOUTS = [
    Layout(3, 2, dp=2),
    Layout(1, tensor=2),
    Layout(3, 2, tensor=2, sequence_parallel=True, kv_heads=1),
    Layout(1, 2, pipeline=2),
    Layout(3, 2, ulysses=2),
]


@pytest.fixture(scope="module")
def records() -> dict[Layout, Any]:
    found: dict[Layout, Any] = {}
    for world_size, layouts in ((1, {layout.reference: 0 for layout in LAYOUTS}), (2, LAYOUTS)):
        ranks = run_distributed([(losses_with_a_term, (layout, STEPS)) for layout in layouts], world_size)
        found |= {layout: by_rank[0] for layout, by_rank in zip(layouts, ranks, strict=True)}
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_loss_with_a_further_term(layout: Layout, records: dict[Layout, Any]) -> None:
    found, expected = records[layout], records[layout.reference]
    assert deviation(found, expected) < 1e-5
    assert np.array(expected)[:, 3].min() > 1e-3  # loss, ar, nar, own, norm
    np.testing.assert_allclose(np.array(expected)[:, 0], np.array(expected)[:, 1:4].sum(axis=1), rtol=1e-12)
