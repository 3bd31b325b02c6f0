"""Samples, their segments, and the audio spans within them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ttt_dist.sequence.id_bytes import WIDTH, to_array, to_bytes
from ttt_dist.sequence.tokens import TokenLayout


class Segment(NamedTuple):
    """A run of tokens of one sample, all targets or none: ids int32 [n]."""

    ids: np.ndarray
    is_target: bool


@dataclass(slots=True)
class Sample:
    """One training example: segments in order. The prompt is not a target; what the model must produce is."""

    content: bytes
    """All tokens (`id_bytes`)."""
    ends: Sequence[tuple[int, bool]]
    """Where each segment ends, in tokens, and whether it is a target."""

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Sample":
        """These segments, joined."""
        ends = zip(accumulate(len(s.ids) for s in segments), (s.is_target for s in segments), strict=True)
        return cls(b"".join(to_bytes(segment.ids) for segment in segments), list(ends))

    @property
    def segments(self) -> list[Segment]:
        """The runs."""
        ids, starts = self.ids, [0, *(end for end, _ in self.ends)]
        return [Segment(ids[start:end], flag) for start, (end, flag) in zip(starts, self.ends, strict=False)]

    @property
    def ids(self) -> np.ndarray:
        """All tokens, int32 [n], read-only."""
        return to_array(self.content)

    @property
    def is_target(self) -> np.ndarray:
        """Which tokens the model must produce, bool [n]."""
        stops = [0, *(end for end, _ in self.ends)]
        return np.repeat([flag for _, flag in self.ends], np.diff(stops))

    @classmethod
    def from_arrays(cls, ids: np.ndarray, is_target: np.ndarray) -> "Sample":
        """Cut ids [n] where is_target [n] changes."""
        borders = np.flatnonzero(np.diff(is_target.astype(np.int8))) + 1
        parts = np.split(np.asarray(ids, dtype=np.int32), borders)
        flags = [bool(is_target[start]) for start in (0, *borders)]
        return cls.of([Segment(part, flag) for part, flag in zip(parts, flags, strict=True)])

    @property
    def key(self) -> int:
        """64-bit hash of the content: names the sample wherever it is packed, so its noise does not depend on the pack."""
        digest = blake2b(self.ids.astype("<i4").tobytes(), digest_size=8)
        digest.update(np.packbits(self.is_target).tobytes())
        return int.from_bytes(digest.digest(), "little")

    def __len__(self) -> int:
        return len(self.content) // WIDTH


TASKS = ("text_to_text", "text_to_speech", "speech_to_text", "speech_to_speech")
"""Kinds of samples, by what is given and what is to be produced; text may come with speech on both sides."""


def task_of(sample: Sample, layout: TokenLayout) -> int:
    """Its place in TASKS, told from token classes and targets alone: shards do not keep the template of a sample."""
    is_audio, is_target = layout.is_audio[sample.ids], sample.is_target
    return 2 * bool(is_audio[~is_target].any()) + bool(is_audio[is_target].any())


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs of True in flags [n], as (start, end) with end exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def spans(ids: np.ndarray, layout: TokenLayout) -> list[tuple[int, int]]:
    """Audio spans of one sample's ids [n]: maximal runs of audio-class tokens, as (start, end), end exclusive."""
    return runs(layout.is_audio[ids])
