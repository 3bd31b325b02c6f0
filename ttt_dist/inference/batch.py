"""The new tokens of many sequences as the tokens of one forward (`Batch`): exactly they, or filled up to fixed shapes.

Exact, on the CPU: no token is padding, and keys are read in multiples of `KEYS`, so that what a request computes has shapes
that depend on itself alone. Adjacent slots of one shape share a run.

Fixed, for CUDA graphs: all slots have as many rows and keys as the longest, each rounded up to a bucket (`fixed_shape`). So
few shapes exist, and each comes again and again.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Ordered
from typing import NamedTuple

import numpy as np

from ttt_dist.model.attention.kv_cache import Run, SequenceCache

KEYS = 64
FIXED_KEYS = 256
FIXED_ROWS = (1, 8, 16, 32, 48, 64, 128, 192, 256)
"""Buckets of new tokens; a forward with longer ones (prompts) comes once and is not worth a graph."""
FEW_ROWS = 64
"""Up to here padding costs next to nothing; of more, half have to be tokens."""


class Row(NamedTuple):
    """The new tokens of one sequence."""

    ids: np.ndarray
    positions: np.ndarray
    """Of each in the sequence, for the rotary embedding; keys lie in the cache in the order of the row."""
    sees: np.ndarray
    """What each sees [3, T]: keys before the first number, and those from the second up to the third."""
    sequence: SequenceCache
    needed: np.ndarray
    """Places among the new tokens that a choice is asked for."""
    num_cacheable: int
    """Tokens of the sequence that are final after this forward."""

    @property
    def end(self) -> int:
        """Keys of the sequence, the new ones included."""
        return self.sequence.length + len(self.ids)


class Batch(NamedTuple):
    """The tokens of one forward."""

    table: np.ndarray
    """Ids, positions, places in the cache, slots and the three numbers of what is seen; int64 [7, T]."""
    runs: tuple[Run, ...]
    needed: np.ndarray
    """Tokens that a choice is asked for, row after row, [n]."""


def split_rows(rows: Ordered[Row], most_tokens: int) -> Iterator[list[Row]]:
    """Parts of some rows, in their order, with at most `most_tokens`; a longer row is a part alone."""
    part: list[Row] = []
    num_tokens = 0
    for row in rows:
        num_tokens += len(row.ids)
        if part and num_tokens > most_tokens:
            yield part
            part, num_tokens = [], len(row.ids)
        part.append(row)
    yield part


def exact_batch(rows: Ordered[Row]) -> Batch:
    """Rows as they are; in the order of slots they make the fewest runs."""
    starts = np.cumsum([0, *(len(row.ids) for row in rows)])
    return Batch(np.concatenate([_tokens(row) for row in rows], axis=1), _runs(rows), _needed(rows, starts[:-1]))


def _runs(rows: Ordered[Row]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for row in rows:
        keys = _up(row.end, KEYS)
        run = Run(row.sequence.slot, 1, len(row.ids), keys, bool((row.sees[0] < keys).any()))
        last = runs[-1] if runs else None
        if last and (last.slot + last.num_slots, last.rows, last.keys) == (run.slot, run.rows, run.keys):
            runs[-1] = last._replace(num_slots=last.num_slots + 1, is_masked=last.is_masked or run.is_masked)
        else:
            runs.append(run)
    return tuple(runs)


def fixed_shape(rows: Ordered[Row], capacity: int) -> Run | None:
    """The run that takes all rows in buckets of slots, rows and keys; None where some row is too long for that."""
    longest = max(len(row.ids) for row in rows)
    if longest > FIXED_ROWS[-1]:
        return None
    num_slots = 1 << max(row.sequence.slot for row in rows).bit_length()
    num_rows = next(size for size in FIXED_ROWS if size >= longest)
    if num_rows > FEW_ROWS and 2 * sum(len(row.ids) for row in rows) < num_slots * num_rows:
        return None
    return Run(0, num_slots, num_rows, min(_up(max(row.end for row in rows), FIXED_KEYS), capacity), True)


def fixed_batch(rows: Ordered[Row], run: Run, spare_slot: int) -> Batch:
    """Rows in a grid of slots; idle tokens see the first key of their slot and write into the spare one."""
    table = np.zeros((7, run.num_slots, run.rows), dtype=np.int64)
    table[3], table[4] = spare_slot, 1
    for row in rows:
        table[:, row.sequence.slot, : len(row.ids)] = _tokens(row)
    starts = [row.sequence.slot * run.rows for row in rows]
    return Batch(table.reshape(7, -1), (run,), _needed(rows, starts))


def _tokens(row: Row) -> np.ndarray:
    table = np.empty((7, len(row.ids)), dtype=np.int64)
    table[0], table[1], table[2] = row.ids, row.positions, np.arange(row.sequence.length, row.end)
    table[3], table[4:] = row.sequence.slot, row.sees
    return table


def _needed(rows: Ordered[Row], starts: Ordered[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([start + row.needed for row, start in zip(rows, starts, strict=True)])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
