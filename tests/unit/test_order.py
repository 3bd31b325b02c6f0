"""The order of packs: a permutation of every epoch, a pure function of (seed, step, slot)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.data.sampler import PackOrder, permutation_keys, permute


@given(size=st.integers(1, 700), seed=st.integers(0, 2**32))
def test_permute_is_a_permutation_and_arrays_agree_with_integers(size: int, seed: int) -> None:
    keys = permutation_keys("test", seed)
    array = permute(np.arange(size), size, keys)
    assert sorted(array.tolist()) == list(range(size))
    assert array.tolist() == [permute(index, size, keys) for index in range(size)]


@given(size=st.sampled_from([2**31 - 1, 2**40 + 3, 10**15]), index=st.integers(0, 2**31 - 2))
def test_permute_stays_in_range_of_large_sizes(size: int, index: int) -> None:
    assert 0 <= permute(index, size, permutation_keys("test", 0)) < size


@given(num_packs=st.integers(1, 60), seed=st.integers(0, 99), global_batch=st.integers(1, 17))
def test_every_epoch_reads_every_pack_once(num_packs: int, seed: int, global_batch: int) -> None:
    order = PackOrder(num_packs, seed)
    num_steps = -(-3 * num_packs // global_batch)
    read = [order.nth((step) * global_batch + slot) for step in range(num_steps) for slot in range(global_batch)]
    for epoch in range(3):
        mine = read[epoch * num_packs : (epoch + 1) * num_packs]
        assert {number for _, number in mine} == {epoch}
        assert sorted(pack for pack, _ in mine) == list(range(num_packs))


@given(seed=st.integers(0, 2**40))
def test_epochs_and_seeds_differ(seed: int) -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [PackOrder(64, seed).nth((number * 8 + step) * 8 + slot)[0] for step in range(8) for slot in range(8)]

    orders = [epoch(seed, 0), epoch(seed, 1), epoch(seed + 1, 0), list(range(64))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@given(seed=st.integers(0, 99), step=st.integers(0, 400), slot=st.integers(0, 7))
def test_a_step_does_not_depend_on_the_steps_before_it(seed: int, step: int, slot: int) -> None:
    long_run = PackOrder(37, seed)
    for earlier in range(min(step, 5)):
        long_run.nth((earlier) * 8 + 0)
    assert long_run.nth((step) * 8 + slot) == PackOrder(37, seed).nth((step) * 8 + slot)


def test_neighbours_are_spread() -> None:
    """Packs that lie side by side in the shard do not stay side by side: the order is no rotation or stride."""
    order = permute(np.arange(10_000), 10_000, permutation_keys("packs", 0, 0))
    assert len(np.unique(np.diff(order))) > 5_000
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


GOLDEN = [(991, 0), (501, 0), (597, 0), (972, 1), (197, 7)]


def test_the_order_is_the_same_in_every_process() -> None:
    """Golden figures: a change of the order would make resumed runs read other data."""
    assert [PackOrder(1000, 1234).nth((step) * 8 + 3) for step in (0, 1, 124, 125, 999)] == GOLDEN
    root = Path(__file__).resolve().parents[2]
    code = "from ttt_dist.data.sampler import PackOrder; print(PackOrder(1000, 1234).nth((124) * 8 + 3))"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        told = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        assert told.strip() == str(GOLDEN[2])
