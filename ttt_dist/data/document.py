"""A document as it lies on disk, and what can be wrong with its tokens."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ttt_dist.sequence.tokens import TokenLayout

STARTS_SAMPLE = 1
IS_TARGET = 2
"""Bits of a segment's mode byte."""


class Document(NamedTuple):
    """A document as it lies on disk: ids int32 [n], and per segment its length and mode byte [m]."""

    ids: np.ndarray
    lengths: np.ndarray
    modes: np.ndarray


def check_document(document: Document, layout: TokenLayout, seq_len: int | None) -> Iterator[str]:
    """What is wrong with one document: its structure first, then ids, then the audio spans of its samples."""
    broken = list(check_structure(document, layout, seq_len))
    yield from broken
    if broken:
        return
    for name in ("pad", "mask"):
        stored = np.flatnonzero(document.ids == layout.special_ids[name])
        if len(stored):
            yield f"token {stored[0]}: {name} has no place in a stored sample"
    yield from _check_spans(document, layout)
    yield from _check_targets(document)


def check_structure(document: Document, layout: TokenLayout, seq_len: int | None) -> Iterator[str]:
    """What would make a document unreadable: its length, its modes, ids outside the vocabulary. Some microseconds."""
    ids, _, modes = document
    if seq_len is not None and len(ids) > seq_len:
        yield f"{len(ids)} tokens, longer than seq_len {seq_len}"
    if not len(modes) or not modes[0] & STARTS_SAMPLE:
        yield "its first segment does not start a sample"
        return
    if max(modes.tobytes()) > STARTS_SAMPLE | IS_TARGET:
        yield "a mode byte has unknown bits"
    if len(ids) and ids.view(np.uint32).max() >= layout.vocab_size:  # a negative one becomes a large one
        outside = np.flatnonzero((ids < 0) | (ids >= layout.vocab_size))[0]
        yield f"token {outside}: id {ids[outside]} is outside the vocabulary of {layout.vocab_size}"


def _check_targets(document: Document) -> Iterator[str]:
    starts = np.flatnonzero(document.modes & STARTS_SAMPLE)
    has_target = np.logical_or.reduceat((document.modes & IS_TARGET) != 0, starts)
    if not has_target.all():
        yield f"sample {np.flatnonzero(~has_target)[0]}: no token of it is a target"


def _check_spans(document: Document, layout: TokenLayout) -> Iterator[str]:
    """A run of audio class is opened by a start-of-audio token of its sample, and its end stands only at its end.

    A span of the response must be closed; a span that the user gives must be followed by the prompt's end_of_audio.
    """
    ids = document.ids
    is_audio = layout.is_audio[ids]
    starts_sample = np.zeros(len(ids) + 1, dtype=bool)
    ends = np.cumsum(document.lengths)
    starts_sample[(ends - document.lengths)[(document.modes & STARTS_SAMPLE) != 0]] = True
    starts_sample[-1] = True
    is_target = np.repeat((document.modes & IS_TARGET) != 0, document.lengths)
    opens = (ids == layout.begin_of_audio) | (ids == layout.begin_of_quad)
    closes = (ids == layout.end_of_audio_new) | (ids == layout.end_of_audio_span_last)

    begins = is_audio & (starts_sample[:-1] | ~np.append(False, is_audio[:-1]))
    unopened = begins & (starts_sample[:-1] | ~np.append(False, opens[:-1]))
    goes_on = is_audio & np.append(is_audio[1:], False) & ~starts_sample[1:]
    finishes = is_audio & ~goes_on
    followed = np.append(ids[1:] == layout.end_of_audio, False) & ~starts_sample[1:]
    for bad, message in (
        (unopened, "audio without a start-of-audio token before it"),
        (closes & goes_on, "end of audio in the middle of a span"),
        (finishes & is_target & ~closes, "a span of the response that no end of audio closes"),
        (finishes & ~is_target & ~closes & ~followed, "audio of the prompt that no end_of_audio follows"),
    ):
        if bad.any():
            yield f"token {np.flatnonzero(bad)[0]}: {message}"
