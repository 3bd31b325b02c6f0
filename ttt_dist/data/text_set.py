"""Plain text sets of Megatron (`PREFIX.bin`, `PREFIX.idx`, as preprocess_data.py writes them), read as packs where they lie.

All documents stand in one mixed order, which is cut into rows of seq_len tokens. A row begins with the last token of the row
before, so that each token of a document but its first is a target once; a document that a border cuts goes on as a sample of
its own. Which rows there are follows from the set and seq_len alone; the order in which they are read is that of packs
(`sampler`). Megatron's GPTDataset cuts in the same way, but lists documents and rows in files of its own.

The mixed order needs no list: the document at place k is k times a step, modulo their number. With the golden ratio as the
step those of a row, and of any stretch, lie evenly over the whole set (Knuth, The Art of Computer Programming, 6.4). So only
the tokens before every 32nd document are kept.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ttt_dist.data.indexed import HEADER, open_indexed
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.set_index import Check
from ttt_dist.sequence.id_bytes import to_bytes
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "int64")
GROUP = 32  # documents between two places whose tokens are counted: what finding a row goes through
CHUNK = 2048 * GROUP  # documents at once while they are counted
NUM_PROBES = 16
REMEDY = "make it again with Megatron's preprocess_data.py"


class TextSet:
    """Rows of a plain text set: `len` of them, `[i]` the samples of one, all of whose tokens are targets.

    Ids must be text of `layout`: those of some rows are looked at now, the others when they are read. The layout's pad, as which
    an end-of-document token may stand there, ends a sample and is left out, and so is a piece of one token.
    """

    def __init__(self, prefix: str | Path, layout: TokenLayout, seq_len: int) -> None:
        """Raises UserError where the files are no text set, or hold ids that are no text."""
        self.prefix, self.layout, self.seq_len = Path(prefix), layout, seq_len
        self._data = open_indexed(self.prefix, multimodal=False, dtypes=INTEGERS, remedy=REMEDY)
        self._lengths = self._document_lengths()
        self._step = _step(len(self._lengths))
        self._group_ends = self._count()
        """Tokens up to the end of each group, in the mixed order."""
        self._num_tokens = int(self._group_ends[-1])
        if self._num_tokens < 2:
            raise UserError(f"{self.prefix}: holds no text; {REMEDY}")
        self.counts = {
            "packs": len(self), "samples": len(self._lengths), "tokens": self._num_tokens, "audio_tokens": 0,
        }  # fmt: skip
        for index in np.linspace(0, len(self) - 1, NUM_PROBES).astype(int).tolist():
            self[index]

    @property
    def checksum(self) -> str:
        """The bytes of both files: nothing beside them says more."""
        return f"{self._data.idx_bytes}+{self._data.bin_bytes} bytes"

    def require_files(self, check: Check) -> None:
        """Both are open."""

    def __len__(self) -> int:
        return -(-(self._num_tokens - 1) // (self.seq_len - 1))

    def __getitem__(self, index: int) -> list[Sample]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start = index * (self.seq_len - 1)
        samples = []
        for document, first, stop in self._pieces(start, min(start + self.seq_len, self._num_tokens)):
            ids = self._read(document, first, stop)
            for text in np.split(ids, np.flatnonzero(ids == self.layout.pad) + 1):
                text = text[:-1] if len(text) and text[-1] == self.layout.pad else text
                if len(text) > 1:  # of one token alone nothing is predicted
                    samples.append(Sample(to_bytes(text), [(len(text), True)]))
        return samples

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Of the tokens start..stop of the mixed order: document, first token of it, end."""
        group = int(np.searchsorted(self._group_ends, start, side="right"))
        at = int(self._group_ends[group - 1]) if group else 0
        while at < stop:
            documents = self._mixed(group * GROUP, GROUP)
            for document, length in zip(documents.tolist(), self._lengths[documents].tolist(), strict=True):
                if at + length > start and at < stop and length:
                    yield document, max(start - at, 0), min(stop - at, length)
                at += length
            group += 1

    def _read(self, document: int, first: int, stop: int) -> np.ndarray:
        """A piece of a document, int32. Raises UserError on an id that is no text."""
        begin = self._data.index.sequence_pointers[self._data.index.document_indices[document]]
        ids = self._data.read(int(begin) + first * self._data.dtype.itemsize, stop - first)
        is_text = (ids >= 0) & (ids < self.layout.num_text_tokens)
        is_text &= ~self.layout.is_audio[np.where(is_text, ids, 0)]
        if not is_text.all():
            [wrong, *_] = np.flatnonzero(~is_text).tolist()
            raise UserError(
                f"{self.prefix}.bin: document {document}, token {first + wrong}: id {ids[wrong]} is no text of the tokenizer "
                f"{self.layout.tokenizer} of the other sources, which has {self.layout.num_text_tokens:,} ids; make the set with that one"
            )
        return ids.astype(np.int32)

    def _count(self) -> np.ndarray:
        """int64 [groups]: a pass over all documents."""
        sums = []
        for first in range(0, len(self._lengths), CHUNK):
            lengths = self._lengths[self._mixed(first, CHUNK)]
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), GROUP), dtype=np.int64))
        return np.cumsum(np.concatenate(sums))

    def _mixed(self, first: int, count: int) -> np.ndarray:
        """The documents at these places of the mixed order, int64."""
        size = len(self._lengths)
        return np.arange(first, min(first + count, size)) * self._step % size

    def _document_lengths(self) -> np.ndarray:
        """Tokens of each: of most sets the index has them; those of several sequences each are added up.

        Refuses modes (of packs without their JSON), and an index whose sequences do not lie one after the other.
        """
        lengths, pointers, borders, _ = self._data.index
        path, width = with_suffix(self.prefix, ".idx"), self._data.dtype.itemsize
        if path.stat().st_size != HEADER.size + lengths.nbytes + pointers.nbytes + borders.nbytes:
            raise UserError(
                f"{path}: says more than a text set does (a multimodal one?); of packs the JSON is missing, pack again"
            )
        if not len(lengths):
            raise UserError(f"{self.prefix}: holds no text; {REMEDY}")
        end = int(pointers[-1]) + int(lengths[-1]) * width
        is_simple, is_whole = True, borders[0] == 0 and borders[-1] == len(lengths) and pointers[0] == 0
        for first in range(0, max(len(lengths), len(borders)), CHUNK):
            some, after = slice(first, first + CHUNK), slice(first, first + CHUNK + 1)
            steps = np.diff(pointers[after])
            is_whole &= bool((steps == lengths[some][: len(steps)].astype(np.int64) * width).all())
            is_whole &= bool((lengths[some] >= 0).all() and (np.diff(borders[after]) >= 0).all())
            is_simple &= bool((np.diff(borders[after]) == 1).all())
        if not is_whole:
            raise UserError(f"{path}: its sequences do not lie one after the other; {REMEDY}")
        size = with_suffix(self.prefix, ".bin").stat().st_size
        if size < end:
            raise UserError(f"{self.prefix}.bin: {size} bytes, but its index asks for {end}; copy it again")
        if is_simple:
            return lengths
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return np.diff(ends[borders])


def _step(size: int) -> int:
    """The number nearest below size / golden ratio that has no divisor in common with size: its multiples are all of 0..size-1."""
    step = max(int(size * (math.sqrt(5) - 1) / 2), 1)
    while math.gcd(step, size) > 1:
        step -= 1
    return step
