"""The composed samples of all parts of a folder, under one running number: their lengths, and their tokens on request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.sample_parts import shared
from data_prep.packing.truncation import cut, pieces
from ttt_dist.data.document import Document
from ttt_dist.data.set_index import SetIndex
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.speakers import add_up
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import open_new, remove_dead_leftovers, temporary_name, writing
from ttt_dist.util.errors import UserError

NAMED = 20


class Documents:
    """Samples in memory, found by their numbers."""

    def __init__(self, numbers: np.ndarray, documents: list[Document]) -> None:
        """`numbers` [n] in rising order."""
        self._numbers = numbers
        self._documents = documents

    def join(self, numbers: np.ndarray) -> Document:
        """Several samples as one document."""
        found = [self._documents[i] for i in np.searchsorted(self._numbers, numbers).tolist()]
        return Document(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


@dataclass
class SampleSource:
    """Samples 0..n-1 of the parts (prefix, JSON), and after them the pieces of samples that are cut."""

    parts: list[tuple[Path, dict[str, Any]]]
    too_long_sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Per piece, the number of its sample, and where in it the piece starts and stops."""
    piece_range: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0] + [part["counts"]["packs"] for _, part in self.parts])
        self._lengths_file: Path | None = None

    @cached_property
    def _reader(self) -> ShardReader:
        """All parts as one."""
        index = SetIndex.of_shards(self.parts[0][1], self.parts)
        return ShardReader(self.parts[0][0], "nothing", index)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs; it maps the lengths and opens parts by itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_reader", "lengths")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._lengths_file is not None:
            self._map_lengths()

    @property
    def layout(self) -> dict[str, Any]:
        return dict(self.parts[0][1]["layout"])

    def require_alike(self) -> None:
        """Refuse parts of different layouts or settings, packs given for samples, and no samples at all."""
        first_prefix, first = self.parts[0]
        layout = TokenLayout.from_dict(first["layout"], f"{first_prefix}.json")
        for prefix, part in self.parts:
            if part["seq_len"] is not None:
                raise UserError(f"{prefix}: packs, not samples; give --samples the folder that compose wrote")
            layout.require_same(TokenLayout.from_dict(part["layout"], f"{prefix}.json"), f"{prefix}.json")
            if shared(part["made_from"]) != shared(first["made_from"]):
                raise UserError(f"{prefix}: composed with other settings than {first_prefix}; compose again")
        if not self.starts[-1]:
            raise UserError(f"{first_prefix.parent}: its parts hold no sample; see what compose reported")

    def fingerprint(self) -> str:
        """One checksum of all parts, by those of their JSONs."""
        return hashlib.sha256("".join(part["checksum"] for _, part in self.parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Where the samples came from, for the JSON of shards."""
        num_samples = sum(part["counts"]["samples"] for _, part in self.parts)
        imported = {part["made_from"]["source"] for _, part in self.parts if "source" in part["made_from"]}
        common = shared(self.parts[0][1]["made_from"])
        speakers = add_up(part.get("speakers", {}) for _, part in self.parts)
        counts = {"parts": len(self.parts), "samples": num_samples}
        return {**common, "imported": sorted(imported), **counts, **({"speakers": speakers} if speakers else {})}

    def read_lengths(self, path: Path) -> None:
        """Write the length of every sample to a temporary file beside `path`, and map it as `lengths`, int32 [n]."""
        remove_dead_leftovers(path)
        self._lengths_file = temporary_name(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(self._lengths_file) as file:
                for lengths in self._reader.lengths_by_shard():
                    lengths.astype("<i4").tofile(file)
        self._map_lengths()

    def _map_lengths(self) -> None:
        assert self._lengths_file is not None
        self.lengths: np.ndarray = np.memmap(self._lengths_file, dtype="<i4", mode="r")

    def forget(self) -> None:
        """Remove the file of the lengths."""
        if self._lengths_file is not None:
            self._lengths_file.unlink(missing_ok=True)

    def shorten(self, seq_len: int, cut: bool) -> dict[str, Any]:
        """Cut samples longer than seq_len into pieces, numbered after the samples, or leave them out.

        Returns what became of them: numbers of samples dropped and cut, pieces made, tokens lost, the first named.
        """
        summary: dict[str, Any] = {"dropped": 0, "cut": 0, "pieces": 0, "tokens_lost": 0, "examples": []}
        numbers = np.flatnonzero(self.lengths > seq_len)
        samples, ranges = [], []
        for number in numbers.tolist():
            found = (
                pieces(self._reader.document(number), TokenLayout.from_dict(self.layout, ""), seq_len) if cut else []
            )
            samples += [number] * len(found)
            ranges += found
            length = int(self.lengths[number])
            summary["dropped" if not found else "cut"] += 1
            summary["tokens_lost"] += length - sum(stop - start for start, stop in found)
            if len(summary["examples"]) < NAMED:
                summary["examples"].append(self._message(number, length, seq_len, len(found)))
        summary["pieces"] = len(samples)
        self._add_pieces(np.array(samples, np.int64), np.array(ranges, np.int64).reshape(-1, 2))
        return summary

    def _message(self, number: int, length: int, seq_len: int, num_pieces: int) -> str:
        part, document = self._place(number)
        fate = f"cut, {num_pieces} piece(s) kept" if num_pieces else "dropped"
        name = self.parts[part][0].name
        return f"{name}.bin: document {document}: {length} tokens, longer than seq_len {seq_len}: {fate}"

    def _add_pieces(self, samples: np.ndarray, ranges: np.ndarray) -> None:
        self.too_long_sample, self.piece_range = samples, ranges
        if len(samples):
            assert self._lengths_file is not None
            with writing(self._lengths_file), open(self._lengths_file, "ab") as file:
                (ranges[:, 1] - ranges[:, 0]).astype("<i4").tofile(file)
            self._map_lengths()

    def load(self, numbers: np.ndarray) -> Documents:
        """The tokens of samples and pieces, read part by part."""
        numbers = np.sort(numbers)
        num_samples = int(self.starts[-1])
        whole, torn = numbers[numbers < num_samples], numbers[numbers >= num_samples] - num_samples
        documents = self._reader.documents(whole)
        for piece in torn.tolist():
            sample = self._reader.document(int(self.too_long_sample[piece]))
            documents.append(cut(sample, *self.piece_range[piece].tolist()))
        return Documents(numbers, documents)

    def _place(self, number: int) -> tuple[int, int]:
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        return part, int(number - self.starts[part])
