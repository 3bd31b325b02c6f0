"""Packed shards on disk: Megatron `.bin/.idx` plus a JSON (`ShardWriter`, `ShardReader`).

One document is one pack and one sequence is one segment of a sample; the mode byte of a sequence says whether it starts
a sample (bit 0) and whether its tokens are targets (bit 1). A pack is contiguous: one read. Composed samples are kept
in the same format, one sample per document and no seq_len. Larger corpora are sets: shards PREFIX-00000-of-00012 and so
on, PREFIX.json that lists them, and PREFIX.shards (`set_index`) with what a reader needs of each.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ttt_dist.data import metadata
from ttt_dist.data.document import IS_TARGET, STARTS_SAMPLE, Document, check_structure
from ttt_dist.data.indexed import new_builder, open_indexed
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.set_index import Check, SetIndex, open_index, require_size
from ttt_dist.sequence.id_bytes import WIDTH, to_array
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import fsync_folder, open_new, sha256_file, temporary_name, writing
from ttt_dist.util.errors import UserError

SUFFIXES = (".bin", ".idx", ".json")
DOCUMENTS_AT_ONCE = 128
OPEN_SHARDS = 20  # of all readers of a process; two handles each, three where many documents are read at once


def to_document(samples: Sequence[Sample]) -> Document:
    """Samples one after the other. Empty segments are left out; a sample without tokens is the programmer's fault."""
    lengths: list[int] = []
    modes: list[int] = []
    for sample in samples:
        _list_segments(sample, lengths, modes)
    ids = samples[0].ids if len(samples) == 1 else np.concatenate([sample.ids for sample in samples])
    return Document(ids, np.array(lengths, np.int32), np.array(modes, np.int8))


def _list_segments(sample: Sample, lengths: list[int], modes: list[int]) -> None:
    """Append length and mode byte of every segment that is not empty."""
    starts, start = STARTS_SAMPLE, 0
    for end, is_target in sample.ends:
        if end > start:
            lengths.append(end - start)
            modes.append(IS_TARGET * is_target | starts)
            starts, start = 0, end
    assert not starts, "a sample without tokens cannot be stored"


def to_samples(document: Document) -> list[Sample]:
    """The samples of a document."""
    content, samples = document.ids.tobytes(), list[Sample]()
    start = stop = 0
    ends: list[tuple[int, bool]] = []
    for length, mode in zip(document.lengths.tolist(), document.modes.tolist(), strict=True):
        if mode & STARTS_SAMPLE and ends:
            samples.append(Sample(content[WIDTH * start : WIDTH * stop], ends))
            start, ends = stop, []
        stop += length
        ends.append((stop - start, bool(mode & IS_TARGET)))
    return [*samples, Sample(content[WIDTH * start :], ends)]


class ShardWriter:
    """Writes one shard under temporary names; `close` makes it appear whole, `abort` leaves nothing.

    `meta` goes into the JSON and must hold `layout` (TokenLayout.to_dict) and `seq_len` (None for composed samples).
    One part of many `may_be_empty`: then it is a JSON alone. As a context manager it closes on success and aborts on an
    error. Raises UserError naming the path on a full disk.
    """

    def __init__(self, prefix: str | Path, meta: dict[str, Any], may_be_empty: bool = False) -> None:
        self.prefix = Path(prefix)
        self.meta = meta
        self.may_be_empty = may_be_empty
        self.layout = TokenLayout.from_dict(meta["layout"], str(prefix))
        self.num_documents = 0
        # What was added since ids were written last: they are counted, hashed and written many documents a call.
        self._contents: list[bytes] = []
        self._lengths: list[int] = []
        self._modes: list[int] = []
        self._num_segments: list[int] = []
        self._num_samples = self._num_tokens = self._num_audio = self._num_targets = 0
        self._digest = sha256()
        self._final = {suffix: with_suffix(self.prefix, suffix) for suffix in SUFFIXES}
        self._temporary = {suffix: temporary_name(path) for suffix, path in self._final.items()}
        with writing(self._final[".bin"]):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._builder = new_builder(self._temporary[".bin"], multimodal=True)

    def add(self, samples: Sequence[Sample]) -> None:
        """Append one document."""
        before = len(self._lengths)
        for sample in samples:
            self._contents.append(sample.content)
            _list_segments(sample, self._lengths, self._modes)
        self._end_document(len(self._lengths) - before)

    def add_document(self, document: Document) -> None:
        """Append one document as it lies on disk, for jobs that only move samples."""
        self._contents.append(document.ids.tobytes())
        self._lengths += document.lengths.tolist()
        self._modes += document.modes.tolist()
        self._end_document(len(document.lengths))

    def _end_document(self, num_segments: int) -> None:
        self._num_segments.append(num_segments)
        self.num_documents += 1
        if len(self._num_segments) == DOCUMENTS_AT_ONCE:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if not self._num_segments:
            return
        content = b"".join(self._contents)
        ids, lengths, modes = to_array(content), np.array(self._lengths), np.array(self._modes)
        with writing(self._final[".bin"]):
            self._builder.add_documents(content, self._lengths, self._modes, self._num_segments)
        self._digest.update(content)
        self._num_samples += int(np.count_nonzero(modes & STARTS_SAMPLE))
        self._num_tokens += len(ids)
        self._num_audio += int(np.count_nonzero(self.layout.is_audio.take(ids)))
        self._num_targets += int(lengths[(modes & IS_TARGET) != 0].sum())
        for waiting in (self._contents, self._lengths, self._modes, self._num_segments):
            waiting.clear()

    def counts(self) -> dict[str, float]:
        """What has been added so far; `fill` is the share of seq_len that holds tokens."""
        self._write_waiting()
        counts: dict[str, float] = {
            "packs": self.num_documents,
            "samples": self._num_samples,
            "tokens": self._num_tokens,
            "audio_tokens": self._num_audio,
            "target_tokens": self._num_targets,
        }
        if self.meta["seq_len"]:
            counts["fill"] = round(self._num_tokens / max(self.num_documents * self.meta["seq_len"], 1), 6)
        return counts

    def close(self) -> dict[str, Any]:
        """Complete the shard and return its meta. Raises UserError where nothing was added or the disk is full."""
        try:
            if self.num_documents == 0 and not self.may_be_empty:
                raise UserError(f"{self.prefix}: nothing to write, no sample was left; see the messages above")
            with writing(self._final[".bin"]):
                meta = self._write_temporary()
                self._rename()
        except BaseException:
            self.abort()
            raise
        return meta

    def abort(self) -> None:
        """Remove what was written; an earlier shard of this name stays as it was."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk; the file goes away in any case
            self._builder.data_file.close()
        for path in self._temporary.values():
            path.unlink(missing_ok=True)

    def _write_temporary(self) -> dict[str, Any]:
        """Everything that can fail for want of space happens here, before any name changes."""
        self._write_waiting()
        self._builder.finalize(self._temporary[".idx"])
        if not self.num_documents:
            for suffix in (".bin", ".idx"):  # an empty file cannot be mapped
                self._temporary.pop(suffix).unlink()
        files = {
            self._final[suffix].name: {"bytes": path.stat().st_size, "sha256": self._sha256(suffix)}
            for suffix, path in self._temporary.items()
            if suffix != ".json"
        }
        beside = metadata.asset_checksums(self.prefix.parent)
        meta = {"format": metadata.FORMAT, **self.meta, "counts": self.counts(), "files": files, "beside": beside}
        open_new(self._temporary[".json"]).close()
        self._temporary[".json"].write_text(metadata.render(meta), encoding="utf-8")
        for path in self._temporary.values():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return meta

    def _sha256(self, suffix: str) -> str:
        return self._digest.hexdigest() if suffix == ".bin" else sha256_file(self._temporary[suffix])

    def _rename(self) -> None:
        # The JSON makes a shard visible: the old one goes first and the new one comes last.
        self._final[".json"].unlink(missing_ok=True)
        for suffix in [suffix for suffix in SUFFIXES if suffix in self._temporary]:
            os.replace(self._temporary[suffix], self._final[suffix])
        fsync_folder(self.prefix.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class ShardReader:
    """Reads a shard, or a set of shards as one: `len` documents, `[i]` the samples of one, `.document(i)` its arrays.

    Opening checks that the files are there and have their sizes, or as much of that as `check` says. A shard is opened when it
    is first read, and all readers of a process together keep OPEN_SHARDS open. What is read is checked by itself: the index of
    a shard by its checksum when the shard is first opened, the tokens of `[i]` by their structure, so that bytes that changed
    are told by shard and pack and not by whatever fails on them. `data_prep verify` checks every byte.
    """

    def __init__(self, prefix: str | Path, check: Check = "sizes", index: SetIndex | None = None) -> None:
        """`index`: of shards beside `prefix` that are no set on disk."""
        self.prefix = Path(prefix)
        self._folder = str(self.prefix.parent)
        self._index = open_index(self.prefix) if index is None else index
        self.meta = self._index.meta
        self.layout = TokenLayout.from_dict(self.meta["layout"], f"{self.prefix}.json")
        self.seq_len: int | None = self.meta["seq_len"]
        self._ends = self._index.ends
        self._is_whole = np.zeros(len(self._index), dtype=bool)
        """Shards whose .idx has been found to be what was written."""
        self.require_files(check)
        if len(self._index) == 1:
            _open_shard(self, 0)

    @property
    def checksum(self) -> str | None:
        """Of the JSON, which holds those of all other files."""
        return self.meta.get("checksum")

    def require_files(self, check: Check) -> None:
        """Raise UserError naming a file that is missing or has another size than its JSON says, as far as is asked."""
        self._index.require_files(self.prefix.parent, check)

    @property
    def counts(self) -> dict[str, int]:
        """Its packs, samples, tokens, audio_tokens and so on."""
        return dict(self.meta["counts"])

    def require_same_codec(self, other: "ShardReader") -> None:
        """Refuse a shard whose codes come from another codec, though the layouts may agree; both hashes are named.

        Folders that differ may be of one codec, whose weights lie elsewhere on another machine: the hash decides.
        """
        mine, theirs = (shard.meta.get("beside", {}).get("codec") for shard in (self, other))
        if mine != theirs:
            hashes = [metadata.codec_hash(shard.prefix.parent / "codec") for shard in (self, other)]
            if None not in hashes:
                mine, theirs = hashes
        if mine != theirs:
            raise UserError(
                f"{self.prefix}: its codec has hash {str(mine)[:12]}, that of {other.prefix} {str(theirs)[:12]}; "
                "encode both with one codec"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> list[Sample]:
        document = self.document(index)
        problem = next(check_structure(document, self.layout, self.seq_len), None)
        if problem is not None:
            number, pack = self._find(index)
            raise UserError(
                f"{self._prefix(number)}.bin: pack {pack}: {problem}; its bytes have changed: run data_prep verify, write it again"
            )
        return to_samples(document)

    def document(self, index: int) -> Document:
        """One document's arrays: one contiguous read."""
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        number, place = self._find(index)
        return _open_shard(self, number).document(place)

    def documents(self, indices: np.ndarray) -> list[Document]:
        """Several documents' arrays, in any order."""
        shard_of = np.searchsorted(self._ends, indices, side="right")
        found: dict[int, Document] = {}
        for number in np.unique(shard_of).tolist():
            chosen = np.flatnonzero(shard_of == number)
            shard, start = _open_shard(self, number), self._start(number)
            found |= zip(chosen.tolist(), shard.documents(indices[chosen] - start), strict=True)
        return [found[i] for i in range(len(indices))]

    def lengths(self) -> np.ndarray:
        """Tokens per document, int64 [len]."""
        return np.concatenate(list(self.lengths_by_shard()))

    def lengths_by_shard(self) -> Iterator[np.ndarray]:
        """Tokens per document of one shard after the other, int64; those without documents are left out."""
        for number in np.flatnonzero(np.diff(self._ends, prepend=0)).tolist():
            yield _open_shard(self, number).lengths()

    def _find(self, index: int) -> tuple[int, int]:
        """Shard of a document, and its number there."""
        number = int(self._ends.searchsorted(index, side="right"))
        return number, index - self._start(number)

    def _start(self, number: int) -> int:
        return int(self._ends[number - 1]) if number else 0

    def _prefix(self, number: int) -> str:
        return os.path.join(self._folder, self._index.name(number))

    def _open(self, number: int) -> "_Shard":
        """Open a shard that fits what the index says of it. Raises UserError naming the file that does not."""
        prefix = self._prefix(number)
        shard = _Shard(prefix)
        sizes, stated = [shard.data.bin_bytes, shard.data.idx_bytes], self._index.num_bytes[number].tolist()
        if sizes != stated:
            for suffix, found, expected in zip((".bin", ".idx"), sizes, stated, strict=True):
                require_size(f"{prefix}{suffix}", found, expected)
        documents, packs = shard.data.num_documents, int(self._ends[number]) - self._start(number)
        if documents != packs:
            raise UserError(f"{prefix}.idx: {documents} documents, its JSON says {packs}; write the shard again")
        if not self._is_whole[number]:
            checksum = self._index.idx_sha256[number].tobytes()
            if any(checksum) and shard.data.idx_sha256() != checksum:
                raise UserError(f"{prefix}.idx: checksum differs, its contents have changed; write the shard again")
            self._is_whole[number] = True
        return shard


@lru_cache(maxsize=OPEN_SHARDS)
def _open_shard(reader: ShardReader, number: int) -> "_Shard":
    """A shard of a reader, open. One that leaves this cache closes its files once nobody reads it."""
    return reader._open(number)


class _Shard:
    """The .bin and .idx of one shard."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.data = open_indexed(prefix, multimodal=True)

    def document(self, number: int) -> Document:
        """One document's arrays."""
        try:
            return self._document(*self.data.document(number))
        except ValueError as error:
            raise self._outside(number) from error

    def documents(self, numbers: np.ndarray) -> list[Document]:
        """Those of several."""
        all_lengths, pointers, borders, all_modes = self.data.index
        firsts, lasts, found = borders[numbers], borders[numbers + 1], []
        for number, first, last in zip(numbers.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
            try:
                # Copies: the files may be closed meanwhile.
                lengths, modes = all_lengths[first:last].copy(), all_modes[first:last].copy()
                found.append(self._document(int(pointers[first]), lengths, modes))
            except (ValueError, IndexError) as error:
                raise self._outside(number) from error
        return found

    def _document(self, pointer: int, lengths: np.ndarray, modes: np.ndarray) -> Document:
        return Document(self.data.read(pointer, sum(lengths.tolist())), lengths, modes)

    def _outside(self, number: int) -> UserError:
        return UserError(f"{self.prefix}.idx: pack {number} lies outside the .bin; run data_prep verify")

    def lengths(self) -> np.ndarray:
        """Tokens per document, int64 [documents]."""
        index = self.data.index
        ends = np.concatenate([[0], np.cumsum(index.sequence_lengths, dtype=np.int64)])
        return np.diff(ends[index.document_indices])
