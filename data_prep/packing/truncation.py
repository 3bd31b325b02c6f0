"""Samples longer than a pack: left out, or cut where no audio span is torn.

A cut falls between two tokens that are not of one span: never between a start-of-audio token and the end of its audio.
Of a sample with a prompt only the first piece is kept, as the others would have lost what they answer to; a document of
targets alone is cut into as many pieces as it takes. A piece without targets teaches nothing and is left out.
"""

import numpy as np

from ttt_dist.data.document import IS_TARGET, STARTS_SAMPLE, Document
from ttt_dist.sequence.sample import runs
from ttt_dist.sequence.tokens import TokenLayout


def pieces(document: Document, layout: TokenLayout, seq_len: int) -> list[tuple[int, int]]:
    """Where to cut a document of one sample: (start, stop) of pieces of at most seq_len tokens; none where none can be kept."""
    is_target = np.repeat((document.modes & IS_TARGET) != 0, document.lengths)
    allowed = cut_points(document.ids, layout)
    found: list[tuple[int, int]] = []
    start, size = 0, len(document.ids)
    while start < size:
        stop = int(allowed[np.searchsorted(allowed, start + seq_len, side="right") - 1])
        if stop <= start:
            return found  # a span longer than a pack: what follows it would not know it
        if is_target[start + 1 : stop].any():
            found.append((start, stop))
        if not is_target.all():
            return found
        start = stop
    return found


def cut_points(ids: np.ndarray, layout: TokenLayout) -> np.ndarray:
    """The positions 0..n where a sample of ids [n] may be cut: before token i, or at the end."""
    may_cut = np.ones(len(ids) + 1, bool)
    for start, stop in runs(layout.is_audio[ids]):
        closed = stop < len(ids) and ids[stop] == layout.end_of_audio  # of the prompt: a text token that belongs to it
        may_cut[start : stop + closed] = False  # before the start-of-audio token, or after the end
    return np.flatnonzero(may_cut)


def cut(document: Document, start: int, stop: int) -> Document:
    """Tokens start..stop of a document of one sample, as a sample of their own."""
    ends = np.cumsum(document.lengths)
    lengths = np.clip(np.minimum(ends, stop) - np.maximum(ends - document.lengths, start), 0, None)
    kept = lengths > 0
    modes = document.modes[kept] & IS_TARGET
    modes[0] |= STARTS_SAMPLE
    return Document(document.ids[start:stop], lengths[kept].astype(np.int32), modes.astype(np.int8))
