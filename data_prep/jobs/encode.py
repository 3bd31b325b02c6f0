"""Encoding: the audio of a manifest becomes discrete codes, in parts of so many lines each.

OUT/part-00000.bin, .idx hold the codes (Megatron indexed data set, int32: a document per utterance, a sequence per
recording of it); .jsonl the manifest lines in the same order, with their paths as this manifest names them and a hash of
their audio; .json what they were made from, counts, problems, notes (encoded, but worth a look: levels that a mistake makes)
and a checksum per file, written last: a part is complete where its .json is. OUT/codec is the codec, or says where it is.

A part is read and encoded longest utterance first, so that those of one length come together and share a forward of the
codec; threads read ahead meanwhile. By what length they are sorted decides only how well that works.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.assets import keep_codec
from data_prep.corpus_report import provenance
from data_prep.jobs.codes_writer import PartWriter
from data_prep.read_ahead import read_ahead
from ttt_dist.jobs.parts import LineRange, has_files, part_prefix, read_part, versions
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.manifest.clips import Clip, clips
from ttt_dist.manifest.entry import Entry, parse_line, with_paths
from ttt_dist.manifest.problems import Notes, Tally
from ttt_dist.manifest.reading import relocate
from ttt_dist.util.errors import UserError, one_line

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from ttt_dist.audio import Codec

FORMAT = "ttt_dist codes 1"
WINDOW_SECONDS = 600.0  # audio handed to the codec at once, and as much again read ahead: together 77 MB at 16 kHz
UNREADABLE = (OSError, ValueError, ArithmeticError, RuntimeError, MemoryError)
"""What reading one line's audio may raise, UserError among them: whatever a line asks for costs no other."""
READERS = 4  # threads that read ahead


@dataclass(kw_only=True)
class Line:
    """A line of a part, and what becomes of it."""

    place: str
    entry: Entry
    problem: str = ""
    """Why it is left out; empty where it is not."""
    notes: list[str] = field(default_factory=list)
    """What is worth a look in its audio."""
    audio_hash: str = ""
    num_samples: int = 0
    codes: list[tuple[int, int]] = field(default_factory=list)
    """Of each of its clips: where the codes lie aside, and their number."""


OFF = (
    "does not last as long as its duration says (in milliseconds, or of another recording?); filter and group go by it"
)


@dataclass(kw_only=True)
class EncodeJob(PartJob):
    """The parts of a manifest, and what they are encoded with."""

    ranges: list[LineRange]
    codec: str
    codebooks: int | None
    out: Path
    audio_root: Path | None
    retry: bool = False
    """Make parts again that had problems."""
    dtype: str | None = None
    """Precision of a codec that has a choice."""
    label = "encoding"
    unit = "utterance"

    @property
    def num_parts(self) -> int:
        return len(self.ranges)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.out, number)

    def amount(self, number: int) -> float:
        return self.ranges[number].num_lines

    def open(self) -> None:
        """Load the codec and put it beside the codes. Raises UserError where another one lies there."""
        from ttt_dist.audio import UtteranceReader, load_codec

        one_thread()
        self.loaded: Codec = load_codec(self.codec, codebooks=self.codebooks, dtype=self.dtype)
        folder = self.ranges[0].path.parent
        self.reader = UtteranceReader(folder, self.loaded.sample_rate, audio_root=self.audio_root)
        keep_codec(self.loaded, self.out / "codec")

    def finished(self, number: int) -> Outcome | None:
        part = read_part(self.prefix(number), "encode again")
        if part is None:
            return None
        if part.get("made_from") != self._made_from(number) or part.get("parts") != self.num_parts:
            raise UserError(
                f"{self.prefix(number)}.json: was made from another manifest, codec or --from-codes; remove its folder or choose "
                "another --out"
            )
        if (self.retry and part["problems"]) or not has_files(self.prefix(number), part):
            return None
        notes = {reason: Tally(**tally) for reason, tally in part.get("notes", {}).items()}
        return Outcome(part["counts"], part["problems"], notes=notes)

    def _made_from(self, number: int) -> dict[str, Any]:
        lines = self.ranges[number]
        return {
            "format": FORMAT,
            "manifest": lines.path.name,
            "first_line": lines.first,
            "lines_sha256": lines.sha256(),
            "codec_hash": self.loaded.hash,
        }

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        """Write the part: encode its utterances by length, then write what came of them in the manifest's order."""
        counts = {"utterances": 0, "codes": 0, "seconds": 0.0}
        folder = self.ranges[number].path.parent
        with PartWriter(self.prefix(number)) as writer:
            lines = list(self._lines(number))
            self._encode([line for line in lines if not line.problem], writer, tick)
            for line in lines:
                if not line.problem:
                    here = with_paths(line.entry, lambda path: relocate(folder / path, self.out))
                    writer.add({**here, "audio_hash": line.audio_hash}, writer.from_aside(line.codes))
                    counts["utterances"] += 1
                    counts["codes"] += sum(count for _, count in line.codes)
                    counts["seconds"] += line.num_samples / self.loaded.sample_rate
            counts["seconds"] = round(counts["seconds"], 3)
            problems = [line.problem for line in lines if line.problem]
            made = {"made_from": self._made_from(number), "codec": self.loaded.describe(), "versions": versions()}
            made["manifest"] = provenance(self.ranges[number].path)
            notes = _notes_of(lines)
            made["notes"] = {reason: vars(tally) for reason, tally in sorted(notes.items())}
            writer.finish({**made, "part": number, "parts": self.num_parts, "counts": counts, "problems": problems})
        return Outcome(dict(counts), problems, notes=notes)

    def _lines(self, number: int) -> Iterator[Line]:
        """The part's lines; bad ones, and ids that came before in the part, with their problem in place of an entry."""
        seen = set()
        for place, line in self.ranges[number].lines():
            try:
                entry = parse_line(line, place)
                entry["id"] = str(entry.get("id") or f"{self.ranges[0].path.stem}-{place.rpartition(':')[2]}")
                if entry["id"] in seen:
                    raise UserError(f"{place}: id {entry['id']!r} came before; make ids unique")
                if not clips(entry):
                    raise UserError(f"{place}: has no audio; text alone goes through `data_prep import`")
            except UserError as error:
                yield Line(place=place, entry={}, problem=str(error))
            else:
                seen.add(entry["id"])
                yield Line(place=place, entry=entry)

    def _encode(self, lines: Sequence[Line], writer: PartWriter, tick: ProgressCallback) -> None:
        """Give every line its codes, hash and number of samples, or its problem."""
        from ttt_dist.audio.codec import checked_codes

        order = sorted(lines, key=self._turn)
        most = int(WINDOW_SECONDS * self.loaded.sample_rate)
        with read_ahead(order, self._read, total_length, most, READERS, one_thread) as recordings:
            for window in windows(zip(order, recordings, strict=True), most):
                every = [wave for _, waves in window for wave in waves]
                codes = iter(checked_codes(self.loaded, every, self.loaded.encode(every)))
                for line, waves in window:
                    line.codes = writer.lay_aside([next(codes) for _ in waves])
                tick(len(window))
                window.clear()  # before the next is collected

    def _turn(self, line: Line) -> tuple[bool, float]:
        """Orders by length, longest first. Rows of a table come before, as they are: it is read in order, or many times."""
        recordings = clips(line.entry)
        in_table = any("row" in (clip.get("member") or ()) for clip in recordings)
        return not in_table, 0.0 if in_table else -max(map(self._seconds, recordings))

    def _seconds(self, clip: Clip) -> float:
        """What the manifest says, or else the header of a plain file; 0 where neither does."""
        if clip.get("duration") is not None:
            return float(clip["duration"])
        if not isinstance(clip["audio"], str) or clip.get("member"):
            return 0.0
        from ttt_dist.audio.io import audio_seconds

        try:
            return audio_seconds(self.reader.path(clip["audio"])) - float(clip.get("offset") or 0)
        except UNREADABLE:  # told when it is read
            return 0.0

    def _read(self, line: Line) -> list[Tensor]:
        """The waveforms of a line's clips; none, with its problem noted, where one cannot be read."""
        try:
            waves = [self.reader.read(clip, line.notes) for clip in clips(line.entry)]
        except UNREADABLE as error:
            reason = (
                error
                if isinstance(error, UserError)
                else f"cannot be read ({type(error).__name__}: {error}); correct it"
            )
            line.problem = one_line(f"{line.place}: {reason}")
            return []
        line.audio_hash, line.num_samples = hash_of(waves), total_length(waves)
        for clip, wave in zip(clips(line.entry), waves, strict=True):
            seconds, said = len(wave) / self.loaded.sample_rate, float(clip.get("duration") or 0)
            if said and abs(seconds - said) > 0.5 + 0.02 * said:  # MP3 and headers that guess are a little off
                line.notes.append(OFF)
        return waves


def _notes_of(lines: Iterable[Line]) -> Notes:
    """What is worth a look, by reason: each line once, of those that were encoded."""
    notes: Notes = {}
    for line in lines:
        for reason in () if line.problem else dict.fromkeys(line.notes):
            notes.setdefault(reason, Tally()).add(f"{line.place}: {line.entry['id']}")
    return notes


def one_thread() -> None:
    """Keep torch to one core in this thread: --workers use the others, and nothing may depend on their number."""
    import torch

    torch.set_num_threads(1)


def hash_of(waves: Sequence[Tensor]) -> str:
    """128 bits of the samples of an entry, by which copies of a recording are known."""
    digest = hashlib.blake2b(digest_size=16)
    for wave in waves:
        digest.update(len(wave).to_bytes(8, "little"))
        digest.update(wave.contiguous().numpy().tobytes())
    return digest.hexdigest()


def total_length(waves: Sequence[Tensor]) -> int:
    """Samples of some waveforms together."""
    return sum(map(len, waves))


def windows(recordings: Iterable[tuple[Line, list[Tensor]]], most: int) -> Iterator[list[tuple[Line, list[Tensor]]]]:
    """Lines with their waveforms, in stretches of so many samples or one line more; those without any are left out."""
    window: list[tuple[Line, list[Tensor]]] = []
    held = 0
    for line, waves in recordings:
        if waves:
            window.append((line, waves))
            held += total_length(waves)
        if held >= most:
            yield window
            window, held = [], 0
    if window:
        yield window
