"""How full packs of some lengths would be, told from a manifest before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_prep.packing.binpack import WINDOW, pack_window
from data_prep.selection.measures import number, spoken_text
from ttt_dist.manifest.entry import Entry

SEQ_LENS = (1024, 2048, 4096, 8192, 16384)
BYTES_A_TOKEN = 4  # of text, as tokenizers of 32k entries and more have it in English
MARKUP = 12  # tokens of a template around a text and a span


class Fill(NamedTuple):
    """Of packs of one length."""

    seq_len: int
    fill: float
    """Share of positions that hold tokens."""
    too_long: float
    """Share of the samples that are longer than a pack."""


def predicted_tokens(entry: Entry, codes_per_second: float) -> int | None:
    """Tokens of an entry's sample: its codes (`num_codes`, or by its length), its text and markup; None of unknown length."""
    codes, seconds = number(entry.get("num_codes")), number(entry.get("duration"))
    if codes is None and seconds is not None:
        codes = seconds * codes_per_second
    if codes is None:
        return None
    return round(codes) + len((spoken_text(entry) or "").encode()) // BYTES_A_TOKEN + MARKUP


def predicted_fill(lengths: Sequence[int]) -> Iterator[Fill]:
    """Of each of SEQ_LENS in which a sample fits, by packing a random window of samples as `pack` does."""
    array = np.asarray(lengths, np.int64)
    for seq_len in SEQ_LENS:
        _, packs = pack_window(array, 0, seq_len, seed=0, window=WINDOW)
        if packs:
            tokens = sum(int(array[pack].sum()) for pack in packs)
            yield Fill(seq_len, tokens / (len(packs) * seq_len), float((array > seq_len).mean()))
