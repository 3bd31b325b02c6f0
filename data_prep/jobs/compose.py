"""Composing: the parts of codes that encode wrote, rendered through the templates as parts of samples of the same names."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.assets import write_assets
from data_prep.packing.sample_parts import SampleWriter, finished_samples
from data_prep.token_layout_args import open_template
from ttt_dist.data.indexed import open_indexed
from ttt_dist.data.metadata import with_suffix
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.manifest.entry import Entry
from ttt_dist.sequence.id_bytes import WIDTH
from ttt_dist.sequence.template_writer import Codes
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError

DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class CodesPart:
    """A part that `data_prep encode` wrote: PREFIX and its JSON."""

    prefix: Path
    meta: dict[str, Any]

    @property
    def manifest(self) -> Path:
        return with_suffix(self.prefix, ".jsonl")

    @property
    def num_utterances(self) -> int:
        return int(self.meta["counts"]["utterances"])

    def check(self) -> None:
        """Compare the files with their checksums. Raises UserError naming the one that differs."""
        for name, record in self.meta.get("files", {}).items():
            file = self.prefix.with_name(name)
            if not file.is_file() or sha256_file(file) != record["sha256"]:
                raise UserError(f"{file}: missing or changed since it was written; run data_prep encode again")

    def entries(self) -> Iterator[Entry]:
        """The manifest's entries. Raises UserError naming file and line."""
        try:
            with open(self.manifest, encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    yield self._parse(line, number)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.manifest}: not readable ({error}); run data_prep encode again") from error

    def _parse(self, line: str, number: int) -> Entry:
        try:
            entry = _read_json(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.manifest}:{number}: not JSON ({error}); run data_prep encode again") from error
        if not isinstance(entry, dict):
            raise UserError(f"{self.manifest}:{number}: not a JSON object; run data_prep encode again")
        return entry

    def utterances(self, to_ids: Callable[[np.ndarray], bytes]) -> Iterator[tuple[int, Entry, Sequence[Codes]]]:
        """(line, entry, recordings) of every utterance: ids of their codes, by one call of `to_ids` for the part.

        Where that refuses a code, codes are handed on for whoever uses them to find. Raises UserError where codes and
        manifest do not match.
        """
        if not self.num_utterances:
            return
        recordings, borders = self._recordings(to_ids)
        number = 0
        for number, entry in enumerate(self.entries(), start=1):
            if number >= len(borders):
                break
            yield number, entry, recordings[borders[number - 1] : borders[number]]
        if number != len(borders) - 1:
            raise UserError(f"{self.manifest}: {number} lines for {len(borders) - 1} utterances; run encode again")

    def _recordings(self, to_ids: Callable[[np.ndarray], bytes]) -> tuple[Sequence[Codes], list[int]]:
        """Every clip, and the first clip of every utterance; a part is a few MB."""
        index = open_indexed(self.prefix, multimodal=False).index
        ends = np.cumsum(index.sequence_lengths)
        everything = np.fromfile(with_suffix(self.prefix, ".bin"), "<i4")
        borders = index.document_indices.tolist()
        try:
            ids = to_ids(everything)
        except UserError:
            return np.split(everything, ends[:-1]), borders
        stops = (WIDTH * ends).tolist()
        return [ids[start:stop] for start, stop in zip([0, *stops], stops, strict=False)], borders


def _read_json(line: str) -> Any:
    """json.loads, in half of its time for a line as encode writes it."""
    if line.startswith("{"):
        value, end = DECODER.raw_decode(line)
        if line[end:] == "\n":
            return value
    return json.loads(line)


def find_copies(parts: Sequence[CodesPart]) -> list[frozenset[int]]:
    """Per part, the lines whose audio came before, in this part or an earlier one; 16 bytes per utterance of memory."""
    hashes = [bytes.fromhex(entry["audio_hash"]) for part in parts for entry in part.entries()]
    values = np.frombuffer(b"".join(hashes), dtype=[("high", "<u8"), ("low", "<u8")])
    _, first = np.unique(values, return_index=True)
    is_copy = np.ones(len(values), bool)
    is_copy[first] = False
    starts = np.cumsum([0] + [part.num_utterances for part in parts])
    return [frozenset((1 + np.flatnonzero(is_copy[start:stop])).tolist()) for start, stop in itertools.pairwise(starts)]


def fingerprint(parts: Sequence[CodesPart]) -> str:
    """One checksum of all parts, by those of their JSONs."""
    return hashlib.sha256("".join(part.meta["checksum"] for part in parts).encode()).hexdigest()


@dataclass(kw_only=True)
class ComposeJob(PartJob):
    """The parts of codes, and how samples are made of them."""

    parts: list[CodesPart]
    names: tuple[str, ...]
    settings: TemplateSettings
    tokenizer: Path
    codec: Path
    out: Path
    deduplicate: bool
    layout: str = "own"
    label = "composing"
    unit = "utterance"

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.out, number)

    def amount(self, number: int) -> float:
        return self.parts[number].num_utterances

    def open(self) -> None:
        """Load the tokenizer, make the token layout, and put what belongs to the samples beside them."""
        from ttt_dist.audio import describe_codec

        num_codes = describe_codec(self.codec).codebook_size
        self.template = open_template(self.tokenizer, num_codes, self.layout, self.settings)
        write_assets(self.template, self.out, self.codec)
        self.copies = find_copies(self.parts) if self.deduplicate else [frozenset()] * len(self.parts)

    def finished(self, number: int) -> Outcome | None:
        return finished_samples(self.prefix(number), self._made_from(number))

    def _made_from(self, number: int) -> dict[str, Any]:
        """All that decides what a part will hold: its codes, by their JSON with its checksums, and the settings."""
        copies = repr(sorted(self.copies[number])).encode()
        return {
            "codes": self.parts[number].meta["checksum"],
            "manifest": self.parts[number].meta["manifest"],
            "codec": self.parts[number].meta["codec"],
            "templates": list(self.names),
            "settings": self.settings.to_dict(),
            "tokenizer_hash": self.template.tokenizer.hash,
            "layout": self.layout,
            "left_out_sha256": hashlib.sha256(copies).hexdigest() if self.deduplicate else None,
        }

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        """Write the part."""
        part = self.parts[number]
        part.check()
        names_speaker = self.settings.names_speaker(self.names)
        writer = SampleWriter(
            self.prefix(number), number, self.num_parts, self.template.layout, self._made_from(number)
        )
        with writer:
            for line, entry, codes in part.utterances(self.template.audio):
                tick(1)
                if line in self.copies[number]:
                    writer.counts["copies"] += 1
                    continue
                try:
                    for sample in self.template.samples(self.names, entry, codes):
                        writer.add(sample)
                    if names_speaker and entry.get("speaker"):
                        writer.speakers[str(entry["speaker"])] += 1
                except UserError as error:
                    writer.problems.append(
                        f"{part.manifest}:{line}: {entry.get('id', 'utterance without id')}: {error}"
                    )
        return writer.outcome()
