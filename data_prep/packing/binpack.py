"""Best-fit packing of sample lengths into packs of seq_len tokens, in bounded memory and reproducible.

All samples are put in one seeded order that is computed per index, and packed window by window. Best-fit-decreasing
alone fills packs well but sorts them by length, and so by template. Here a pack starts with samples as they come and
is closed by the one or two waiting samples that fill it best; only what is left of a window is packed
best-fit-decreasing. Packs are fuller and a random mixture of short and long (figures in tests/unit/test_pack.py).
"""

import numpy as np

from ttt_dist.data.sampler import permutation_keys, permute

WINDOW = 100_000
LEFT_OVER = 0.02
"""Share of a window that is packed best-fit-decreasing: below it the choice of closing samples gets poor."""
USUAL = 0.75
"""Share of the samples that are no longer than what space is left for: by the longest, a few would decide for all."""


def num_windows(num_samples: int, window: int = WINDOW) -> int:
    """How many windows so many samples are packed in."""
    return -(-num_samples // window)


def pack_window(
    lengths: np.ndarray, number: int, seq_len: int, seed: int, window: int = WINDOW
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pack one window: its samples, and its packs, as arrays of indices into `lengths` [n].

    Samples longer than seq_len are in none. The packs come in random order, and so do the samples of a pack. A window
    depends on the lengths, the seed and its number alone: whoever packs it, and after which others, is the same.
    """
    start = number * window
    inside = np.arange(start, min(start + window, len(lengths)))
    chosen = permute(inside, len(lengths), permutation_keys("samples", seed))
    chosen = chosen[lengths[chosen] <= seq_len]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, start])))
    packs = _pack_window(lengths[chosen].astype(np.int64).tolist(), seq_len, rng)
    shuffled = [chosen[rng.permutation(np.array(packs[i]))] for i in rng.permutation(len(packs))]
    return chosen, shuffled


def _pack_window(lengths: list[int], seq_len: int, rng: np.random.Generator) -> list[list[int]]:
    """Packs of positions 0..n-1 of a window that stands in random order already."""
    pool = _Pool(lengths, seq_len)
    packs = []
    keep = int(LEFT_OVER * len(lengths))
    while pool.size > keep:
        packs.append(_fill(pool, seq_len, rng))
    return packs + best_fit_decreasing(lengths, pool.rest(), seq_len)


def _fill(pool: "_Pool", seq_len: int, rng: np.random.Generator) -> list[int]:
    """One pack: samples as they come while a pair of most others still fits after them, then the samples that close it."""
    pack: list[int] = []
    space = seq_len
    while pool.size and (not pack or space - pool.next_length() >= 2 * pool.usual):
        space -= pool.next_length()
        pack.append(pool.take_next())
    while space and (length := pool.closing_length(space, rng)):
        space -= length
        pack.append(pool.take(length))
    return pack


class _Pool:
    """Waiting samples: in order of arrival, and by length, with a bit set for each length that is there."""

    def __init__(self, lengths: list[int], seq_len: int) -> None:
        self.lengths = lengths
        self.size = len(lengths)
        self.usual = sorted(lengths)[int(USUAL * len(lengths))] if lengths else 0
        self._seq_len = seq_len
        self._taken = bytearray(len(lengths))
        self._next = 0
        self._by_length: list[list[int]] = [[] for _ in range(seq_len + 1)]
        for position in range(len(lengths) - 1, -1, -1):
            self._by_length[lengths[position]].append(position)
        self._there = sum(1 << length for length in range(1, seq_len + 1) if self._by_length[length])
        self._mirror = sum(1 << (seq_len - n) for n in range(1, seq_len + 1) if self._by_length[n])

    def next_length(self) -> int:
        """Length of the sample that has waited longest."""
        while self._taken[self._next]:
            self._next += 1
        return self.lengths[self._next]

    def take_next(self) -> int:
        """Take the sample that has waited longest: it is the last of the list of its length."""
        return self.take(self.next_length())

    def take(self, length: int) -> int:
        """Take the sample of this length that has waited longest."""
        waiting = self._by_length[length]
        position = waiting.pop()
        self._taken[position] = True
        self.size -= 1
        if not waiting:
            self._there ^= 1 << length
            self._mirror ^= 1 << (self._seq_len - length)
        return position

    def closing_length(self, space: int, rng: np.random.Generator) -> int:
        """Length to take next so that one or two samples leave the least of `space`; 0 where none fits."""
        fitting = self._there & ((2 << space) - 1)
        longest = fitting.bit_length() - 1 if fitting else 0
        for waste in range(space - longest):
            # Bit a of `pairs` is set where lengths a and space - waste - a are both there.
            pairs = self._there & (self._mirror >> (self._seq_len - space + waste))
            if pairs:
                return _some_bit(pairs, rng)
        return longest

    def rest(self) -> list[int]:
        """Positions not taken."""
        return [position for position, taken in enumerate(self._taken) if not taken]


def _some_bit(bits: int, rng: np.random.Generator) -> int:
    """One of the set bits, by where a random cut falls."""
    cut = int(rng.random() * bits.bit_length())
    above = bits >> cut
    return cut + (above & -above).bit_length() - 1


def best_fit_decreasing(lengths: list[int], positions: list[int], seq_len: int) -> list[list[int]]:
    """Pack `positions`, longest first, each into the pack with the least space that still holds it."""
    packs: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(seq_len + 1)]
    spaces = 0  # bit s is set where some pack has s tokens of space
    for position in sorted(positions, key=lambda position: -lengths[position]):
        length = lengths[position]
        fitting = spaces >> length
        if fitting:
            space = (fitting & -fitting).bit_length() - 1 + length
            number = by_space[space].pop()
            spaces ^= 0 if by_space[space] else 1 << space
            packs[number].append(position)
        else:
            space, number = seq_len, len(packs)
            packs.append([position])
        by_space[space - length].append(number)
        spaces |= 1 << (space - length)
    return packs
