"""The order of packs: a pure function of the seed (rule 2: one order).

An epoch reads every pack once, in an order given by a keyed permutation that is computed per index (a Feistel network
with cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). There is no list to shuffle and
no state: any step is found at once, a resumed run needs only its step, and a longer run continues a shorter one.
`ttt_dist.data.blend` shares the slots out among several sources.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

NUM_ROUNDS = 8
MASK_64 = (1 << 64) - 1


def permute(index: Any, size: int, keys: tuple[int, ...]) -> Any:
    """Where a keyed permutation of 0..size-1 sends `index`: an int, or a numpy array of them (returned as int64)."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    if isinstance(index, np.ndarray):
        return _walk_array(index.astype(np.uint64), size, half_bits, keys).astype(np.int64)
    index = _feistel(index, half_bits, keys)
    while index >= size:  # outside the range: walk on along the cycle, at most 4 steps on average
        index = _feistel(index, half_bits, keys)
    return index


def _walk_array(index: np.ndarray, size: int, half_bits: int, keys: tuple[int, ...]) -> np.ndarray:
    index = _feistel(index, half_bits, keys)
    outside = np.flatnonzero(index >= size)
    while len(outside):
        index[outside] = _feistel(index[outside], half_bits, keys)
        outside = outside[index[outside] >= size]
    return index


def _feistel(value: Any, half_bits: int, keys: tuple[int, ...]) -> Any:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half_bits | right


def _mix(value: Any) -> Any:
    """The finaliser of splitmix64: every bit of 64 depends on every other."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


@lru_cache(maxsize=64)
def permutation_keys(*name: int | str) -> tuple[int, ...]:
    """The round keys of the permutation called `name`, e.g. ("packs", seed, epoch): the same in every process."""
    digests = [blake2b(repr((*name, number)).encode(), digest_size=8).digest() for number in range(NUM_ROUNDS)]
    return tuple(int.from_bytes(digest, "little") for digest in digests)


class PackOrder:
    """The order in which one source of `num_packs` packs is read: pack and epoch of its n-th reading.

    A source of a blend has its `name` in the keys of its permutations, so that its order is its own whatever the others
    are. Without a name, it is the only one.
    """

    def __init__(self, num_packs: int, seed: int, name: str | None = None) -> None:
        assert num_packs >= 1
        self.num_packs = num_packs
        self.seed = seed
        self.name = name

    def nth(self, number: int) -> tuple[int, int]:
        """(pack index, epoch) of the reading `number`, from 0. The epoch also seeds the pack's noise."""
        assert number >= 0
        epoch, place = divmod(number, self.num_packs)
        name = () if self.name is None else (self.name,)
        return permute(place, self.num_packs, permutation_keys("packs", self.seed, *name, epoch)), epoch
