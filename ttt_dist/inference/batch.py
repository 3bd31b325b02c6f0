"""The new tokens of many sequences as the tokens of one forward (`Batch`): exactly they, or filled up to fixed shapes.

Exact, on the CPU: no token is padding, and keys are read in multiples of `KEYS`, so that what a request computes has shapes
that depend on itself alone. Adjacent slots of one shape share a run.

Fixed, for CUDA graphs: all slots have as many rows and keys as the longest, each rounded up to a bucket (`fixed_shape`). So
few shapes exist, and each comes again and again.
"""

from collections.abc import Sequence as Ordered
from typing import NamedTuple

import numpy as np

from ttt_dist.model.attention.kv_cache import Run, SequenceCache

KEYS = 64
FIXED_KEYS = 256
FIXED_ROWS = (1, 8, 16, 32, 48, 64)
"""Buckets of new tokens; a forward with longer ones (prompts) comes once and is not worth a graph."""


class Row(NamedTuple):
    """The new tokens of one sequence."""

    ids: np.ndarray
    ends: np.ndarray
    """Exclusive end of what each sees, as an index into the sequence."""
    sequence: SequenceCache
    needed: np.ndarray
    """Places among the new tokens that a choice is asked for."""
    num_cacheable: int
    """Tokens of the sequence that are final after this forward."""

    @property
    def end(self) -> int:
        """Tokens of the sequence, the new ones included."""
        return self.sequence.length + len(self.ids)


class Batch(NamedTuple):
    """The tokens of one forward."""

    table: np.ndarray
    """Ids, places in the sequence, slots and exclusive ends of what is seen; int64 [4, T]."""
    runs: tuple[Run, ...]
    needed: np.ndarray
    """Tokens that a choice is asked for, row after row, [n]."""


def exact_batch(rows: Ordered[Row]) -> Batch:
    """Tokens in the order of slots."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].sequence.slot)
    ordered = [rows[index] for index in order]
    ends = np.cumsum([len(row.ids) for row in ordered])
    starts = np.zeros(len(rows), dtype=np.int64)
    starts[order[1:]] = ends[:-1]
    return Batch(
        np.concatenate([_tokens(row) for row in ordered], axis=1), _runs(ordered), _needed(rows, starts.tolist())
    )


def _runs(ordered: Ordered[Row]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for row in ordered:
        keys = _up(row.end, KEYS)
        run = Run(row.sequence.slot, 1, len(row.ids), keys, bool((row.ends < keys).any()))
        last = runs[-1] if runs else None
        if last and (last.slot + last.num_slots, last.rows, last.keys) == (run.slot, run.rows, run.keys):
            runs[-1] = last._replace(num_slots=last.num_slots + 1, is_masked=last.is_masked or run.is_masked)
        else:
            runs.append(run)
    return tuple(runs)


def fixed_shape(rows: Ordered[Row], capacity: int) -> Run | None:
    """The run that takes all rows in buckets of slots, rows and keys; None where some row is too long for one."""
    longest = max(len(row.ids) for row in rows)
    if longest > FIXED_ROWS[-1]:
        return None
    num_slots = 1 << max(row.sequence.slot for row in rows).bit_length()
    num_rows = next(size for size in FIXED_ROWS if size >= longest)
    return Run(0, num_slots, num_rows, min(_up(max(row.end for row in rows), FIXED_KEYS), capacity), True)


def fixed_batch(rows: Ordered[Row], run: Run, spare_slot: int) -> Batch:
    """Rows in a grid of slots; idle tokens see the first key of their slot and write into the spare one."""
    table = np.zeros((4, run.num_slots, run.rows), dtype=np.int64)
    table[2], table[3] = spare_slot, 1
    for row in rows:
        table[:, row.sequence.slot, : len(row.ids)] = _tokens(row)
    starts = [row.sequence.slot * run.rows for row in rows]
    return Batch(table.reshape(4, -1), (run,), _needed(rows, starts))


def _tokens(row: Row) -> np.ndarray:
    table = np.empty((4, len(row.ids)), dtype=np.int64)
    table[0], table[1] = row.ids, np.arange(row.sequence.length, row.end)
    table[2], table[3] = row.sequence.slot, row.ends
    return table


def _needed(rows: Ordered[Row], starts: Ordered[int]) -> np.ndarray:
    return np.concatenate([start + row.needed for row, start in zip(rows, starts, strict=True)])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
