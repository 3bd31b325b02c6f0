"""Keys and values of earlier tokens, kept between forwards, and the attention of new tokens over them (docs/method.md#the-cache).

What a token gave as key and value never changes once everything that it sees is final. The caller says how many tokens
are (`SequenceCache.length`); the others are written again at the next forward, over what they left.

All sequences of a session share one store, a slot each: [layers, 2, slots, G, length, D], one tensor per layer so that it
grows layer by layer. Adjacent slots are then one batch of attention, read where they lie: a `Run`. Keys behind a
sequence's end are masked. They are zeros or what another sequence left, never garbage: 0 * NaN would be NaN.
"""

import heapq
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")

FIRST_LENGTH = 512
OPENED = 64  # keys of a sequence whose memory is asked of the system at once


@dataclass
class SequenceCache:
    """One sequence's place in the store; its first `length` tokens are final."""

    slot: int
    length: int = 0


class SlotCache:
    """The store of a session: slots are taken and freed, both axes grow by doubling."""

    def __init__(
        self, num_layers: int, num_groups: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_groups, self.head_dim, self.dtype, self.device = num_groups, head_dim, dtype, device
        self.num_slots = self.length = 0
        self.layers = [torch.empty(0)] * num_layers
        self._opened: list[int] = []
        """Keys of each slot that memory was asked for; a multiple of OPENED."""
        self._free: list[int] = []
        self._num_given = 0

    def take(self) -> SequenceCache:
        """An empty sequence, in the lowest slot that is free: runs of slots stay short and dense."""
        if self._free:
            return SequenceCache(heapq.heappop(self._free))
        self._num_given += 1
        return SequenceCache(self._num_given - 1)

    def free(self, sequence: SequenceCache) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, sequence.slot)

    @property
    def spare_slot(self) -> int:
        """A slot that is nobody's: tokens that only fill up a fixed shape write there."""
        return self.num_slots

    def reserve(self, ends: Mapping[int, int]) -> bool:
        """Make room for tokens up to these ends, by slot, and for all slots given; whether tensors have moved for it."""
        has_moved = self._grow(max(ends.values()))
        before = self._opened.copy()
        for slot, end in ends.items():
            self._opened[slot] = max(before[slot], -(-end // OPENED) * OPENED)
        if self.device.type == "cpu":
            self._touch(before)
        return has_moved

    def _grow(self, length: int) -> bool:
        """Room for all given slots, `length` tokens each; whether tensors have moved for it."""
        num_slots, capacity = max(self.num_slots, 1), max(self.length, FIRST_LENGTH)
        while num_slots < self._num_given:
            num_slots *= 2
        while capacity < length:
            capacity *= 2
        if (num_slots, capacity) == (self.num_slots, self.length):
            return False
        # What is in free slots is nobody's.
        self._opened = [0 if slot in self._free else end for slot, end in enumerate(self._opened)]
        for index, old in enumerate(self.layers):
            new = self._zeros(2, num_slots + 1, self.num_groups, capacity, self.head_dim)
            for slots, end in _stretches(self._opened):
                new[:, slots, :, :end] = old[:, slots, :, :end]
            self.layers[index] = new
        self._opened += [0] * (num_slots - self.num_slots)
        self.num_slots, self.length = num_slots, capacity
        return True

    def _touch(self, before: Sequence[int]) -> None:
        """Write to what has been opened since: pages that come one by one, as tokens are written here and there, take
        longer than by one pass of all threads."""
        for slots, (start, end) in _stretches(zip(before, self._opened, strict=True)):
            if start < end:
                for layer in self.layers:
                    layer[:, slots, :, start:end].zero_()

    def _zeros(self, *shape: int) -> Tensor:
        """On the CPU as pages of the system, which are zeros, and take no memory before someone writes to them."""
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        pages = mmap.mmap(-1, math.prod(shape) * self.dtype.itemsize, flags=mmap.MAP_PRIVATE)
        return torch.frombuffer(pages, dtype=self.dtype).view(shape)


def _stretches(values: Iterable[T]) -> Iterator[tuple[slice, T]]:
    """Adjacent slots with equal values, and these."""
    start = 0
    for value, same in groupby(values):
        stop = start + len(list(same))
        yield slice(start, stop), value
        start = stop


class Run(NamedTuple):
    """Sequences in adjacent slots with equally many new tokens and keys: one batch of attention."""

    slot: int
    num_slots: int
    rows: int
    """New tokens of each; those of slot after slot lie end to end."""
    keys: int
    """How many keys are read; what lies behind a token's end is masked."""
    is_masked: bool


class CachePlan:
    """The attention of one forward over the new tokens of all sequences: for one pass over the layers.

    `slots` and `places` [T] say for each token where its key goes; `sees`, three of [T], what it sees: keys before the first,
    and those from the second up to the third. Runs cover the tokens in order.
    """

    def __init__(
        self, cache: SlotCache, slots: Tensor, places: Tensor, sees: Sequence[Tensor], runs: tuple[Run, ...]
    ) -> None:
        self.cache = cache
        self.runs = runs
        groups = torch.arange(cache.num_groups, device=slots.device)
        rows = (slots.unsqueeze(-1) * cache.num_groups + groups) * cache.length + places.unsqueeze(-1)
        self._rows = rows.flatten()  # among all [slots x G x length] of a layer's keys
        self._starts = np.cumsum([0, *(run.num_slots * run.rows for run in runs)]).tolist()
        self._masks = [
            _mask([part[start:end].view(run.num_slots, run.rows, 1) for part in sees], run.keys, cache.dtype)
            if run.is_masked
            else None
            for run, start, end in zip(runs, self._starts, self._starts[1:], strict=False)
        ]
        self._layer = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [T, H, D] with new keys and values [T, G, D], in the layer that follows the last call's."""
        store = self.cache.layers[self._layer]
        self._layer += 1
        width = q.shape[-1]
        for part, new in zip(store, (k, v), strict=True):
            part.view(-1, width).index_copy_(0, self._rows, new.reshape(-1, width))
        outs = [
            _attend_run(run, q[start : start + run.num_slots * run.rows], store, mask)
            for run, start, mask in zip(self.runs, self._starts, self._masks, strict=False)
        ]
        return torch.cat(outs) if len(outs) > 1 else outs[0]


def _mask(sees: Sequence[Tensor], keys: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [S, 1, rows, keys] of what is seen, three of [S, rows, 1]."""
    end, own, own_end = sees
    key = torch.arange(keys, device=end.device)
    hidden = (key >= end) & ((key < own) | (key >= own_end))
    return torch.zeros(hidden.shape, dtype=dtype, device=end.device).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _attend_run(run: Run, q: Tensor, store: Tensor, mask: Tensor | None) -> Tensor:
    """Heads of a group share its keys, so they are rows of one query: nothing is repeated."""
    (num_tokens, num_heads, width), num_groups = q.shape, store.shape[2]
    keys, values = store[:, run.slot : run.slot + run.num_slots, :, : run.keys]
    per_group = num_heads // num_groups
    grid = (run.num_slots, run.rows, num_groups, per_group, width)
    rows = q.view(grid).permute(0, 2, 3, 1, 4).reshape(run.num_slots, num_groups, -1, width)
    if mask is not None and per_group > 1:
        mask = mask.repeat(1, 1, per_group, 1)
    out = F.scaled_dot_product_attention(rows, keys, values, mask)
    out = out.view(run.num_slots, num_groups, per_group, run.rows, width).permute(0, 3, 1, 2, 4)
    return out.reshape(num_tokens, num_heads, width)
