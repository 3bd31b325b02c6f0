"""Encoding: the audio of a manifest becomes discrete codes, in parts of so many lines each.

OUT/part-00000.bin, .idx hold the codes (Megatron indexed data set, int32: a document per utterance, a sequence per
recording of it); .jsonl the manifest lines in the same order, with their paths as this manifest names them and a hash of
their audio; .json what they were made from, counts, problems and a checksum per file, written last: a part is complete
where its .json is. OUT/codec is the codec, or says where it is.

A part is read and encoded longest utterance first, so that those of one length come together and share a forward of the
codec; threads read ahead meanwhile. By what length they are sorted decides only how well that works.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.corpus_report import provenance
from data_prep.read_ahead import read_ahead
from data_prep.train_codec_tokenizer import learn_codec
from ttt_dist.data.indexed import new_builder
from ttt_dist.data.metadata import asset_checksums, with_suffix
from ttt_dist.jobs.parts import (
    LineRange,
    cut_lines,
    describe_file,
    has_files,
    part_prefix,
    read_part,
    remove_part,
    require_no_others,
    versions,
    write_part,
)
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback, add_arguments, run_parts, task_shard_of, tell
from ttt_dist.manifest.clips import Clip, clips
from ttt_dist.manifest.entry import Entry, parse_line, with_paths
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import relocate, write_entry
from ttt_dist.util.atomic_files import commit, remove_leftovers, temporary_name, writing
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from ttt_dist.audio import Codec
    from ttt_dist.audio.codec import Codes

FORMAT = "ttt_dist codes 1"
PART_SIZE = 8192
WINDOW_SECONDS = 600.0  # audio handed to the codec at once, and as much again read ahead: together 77 MB at 16 kHz
READERS = 4  # threads that read ahead
KINDS = ("bin", "idx", "jsonl")

EXAMPLES = """examples:
  # learn the built-in codec from the corpus, then encode the corpus with it
  python -m data_prep encode --manifest work/train.jsonl --codec melvq --train-codec --frame-rate 25 \\
      --codebook-size 512 --sample-rate 8000 --audio-root recordings --codec-out work/codec --out work/codes-train
  # encode other speech with the same codec
  python -m data_prep encode --manifest work/valid.jsonl --audio-root recordings \\
      --codec melvq:work/codec --out work/codes-valid
  # a published codec, as one of 64 array tasks with four processes each
  python -m data_prep encode --manifest train.jsonl --audio-root /corpora --codec glm4voice:/models/glm-4-voice-tokenizer \\
      --task $SLURM_ARRAY_TASK_ID --tasks 64 --workers 4 --out codes
  mpirun -n 16 python -m data_prep encode ...

Unreadable audio and bad lines are reported and left out, the rest is encoded. With more bad ones than --max-errors
the exit status is 1. A part that is complete is not made again.
"""


@dataclass
class Line:
    """A line of a part, and what becomes of it."""

    place: str
    entry: Entry
    problem: str = ""
    """Why it is left out; empty where it is not."""
    audio_hash: str = ""
    num_samples: int = 0
    codes: list[tuple[int, int]] = field(default_factory=list)
    """Of each of its clips: where the codes lie aside, and their number."""


@dataclass
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
                f"{self.prefix(number)}.json: was made from another manifest or codec; remove its folder or choose "
                "another --out"
            )
        if (self.retry and part["problems"]) or not has_files(self.prefix(number), part):
            return None
        return Outcome(part["counts"], part["problems"])

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
            writer.finish({**made, "part": number, "parts": self.num_parts, "counts": counts, "problems": problems})
        return Outcome(dict(counts), problems)

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
                yield Line(place, {}, str(error))
            else:
                seen.add(entry["id"])
                yield Line(place, entry)

    def _encode(self, lines: Sequence[Line], writer: PartWriter, tick: ProgressCallback) -> None:
        """Give every line its codes, hash and number of samples, or its problem."""
        order = sorted(lines, key=self._turn)
        most = int(WINDOW_SECONDS * self.loaded.sample_rate)
        with read_ahead(order, self._read, total_length, most, READERS, one_thread) as recordings:
            for window in windows(zip(order, recordings, strict=True), most):
                codes = iter(self.loaded.encode([wave for _, waves in window for wave in waves]))
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
        except UserError:  # told when it is read
            return 0.0

    def _read(self, line: Line) -> list[Tensor]:
        """The waveforms of a line's clips; none, with its problem noted, where one cannot be read."""
        try:
            waves = [self.reader.read(clip) for clip in clips(line.entry)]
        except UserError as error:
            line.problem = f"{line.place}: {error}"
            return []
        line.audio_hash, line.num_samples = hash_of(waves), total_length(waves)
        return waves


def one_thread() -> None:
    """Keep torch to one core in this thread: --workers use the others, and nothing may depend on their number."""
    import torch

    torch.set_num_threads(1)


def keep_codec(codec: Codec, folder: Path) -> None:
    """Save the codec beside its codes; UserError where another one lies there."""
    from ttt_dist.audio import describe_codec

    with lease(folder, wait=True):
        if not (folder / "codec.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of one, left by a job that was killed
            codec.save(folder)
        elif describe_codec(folder).hash != codec.hash:
            raise UserError(f"{folder}: holds another codec than the one asked for; remove it or choose another --out")


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


class PartWriter:
    """Writes PREFIX.bin, .idx and .jsonl under temporary names; `finish` gives them their names, then writes .json.

    Use as a context manager: left without `finish`, it removes what it wrote.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.paths = {kind: with_suffix(prefix, f".{kind}") for kind in KINDS}
        aside = with_suffix(prefix, ".aside")
        remove_leftovers(*self.paths.values(), aside, with_suffix(prefix, ".json"))
        with writing(prefix):
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._builder = new_builder(temporary_name(self.paths["bin"]), multimodal=False)
            self._aside: IO[bytes] = temporary_name(aside).open("w+b")
            self._lines: IO[str] = temporary_name(self.paths["jsonl"]).open("w", encoding="utf-8")

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._builder.data_file, self._lines, self._aside):
            with contextlib.suppress(OSError):  # a full disk: the write has raised it, and the file goes now
                file.close()
        for path in (*self.paths.values(), with_suffix(self.prefix, ".aside")):
            temporary_name(path).unlink(missing_ok=True)

    def lay_aside(self, codes: Sequence[Codes]) -> list[tuple[int, int]]:
        """Keep codes in a file of their own until `from_aside` wants them: a part of many codebooks is a gigabyte of them."""
        with writing(self.paths["bin"]):
            places = []
            for one in codes:
                places.append((self._aside.seek(0, 2), len(one)))
                self._aside.write(one.tobytes())
            return places

    def from_aside(self, places: Sequence[tuple[int, int]]) -> list[Codes]:
        """Codes that were laid aside."""
        import numpy as np

        found = []
        for start, count in places:
            self._aside.seek(start)
            found.append(np.fromfile(self._aside, np.int32, count))
        return found

    def add(self, entry: Entry, codes: Sequence[Codes]) -> None:
        """Append one utterance: the codes of each of its clips."""
        with writing(self.paths["bin"]):
            for one in codes:
                self._builder.add_item(one)
            self._builder.end_document()
        with writing(self.paths["jsonl"]):
            write_entry(self._lines, entry)

    def finish(self, meta: dict[str, Any]) -> None:
        """Name the files and write PREFIX.json: `meta`, and size and SHA-256 of each."""
        with writing(self.paths["idx"]):
            self._builder.finalize(temporary_name(self.paths["idx"]))
        with writing(self.paths["jsonl"]):
            self._lines.close()
        temporary_name(
            with_suffix(self.prefix, ".aside")
        ).unlink()  # before the part is complete: nobody tidies up after that
        files = {path.name: describe_file(temporary_name(path)) for path in self.paths.values()}
        with_suffix(self.prefix, ".json").unlink(missing_ok=True)
        for path in self.paths.values():
            with writing(path):
                commit(temporary_name(path), path)
        write_part(self.prefix, {**meta, "files": files, "beside": asset_checksums(self.prefix.parent)})


def run(args: argparse.Namespace) -> None:
    """Learn the codec where asked to, then encode this task's parts."""
    if args.part_size < 1:
        args.fail(f"--part-size {args.part_size}: at least 1 line is needed")
    share = task_shard_of(args)
    spec = args.codec
    if args.train_codec:
        if args.codec != "melvq":
            args.fail(f"--train-codec: only the built-in codec can be learnt; write --codec melvq, not {args.codec}")
        spec = f"melvq:{_learnt(args)}"
    problems = Problems(args.max_errors)
    ranges = cut_lines(args.manifest, args.part_size)
    require_no_others(args.out, len(ranges))
    job = EncodeJob(ranges, spec, args.codebooks, args.out, args.audio_root, args.retry, args.codec_dtype)
    totals = run_parts(job, share, problems)
    counts = totals.counts
    num_utterances = int(counts.get("utterances", 0))
    if totals.parts and not num_utterances:
        for number in share.of(job.num_parts):
            remove_part(job.prefix(number))
        raise UserError(f"{args.manifest}: none of its utterances could be encoded ({problems.count} bad)")
    hours, codes = counts.get("seconds", 0) / 3600, int(counts.get("codes", 0))
    tell(args.out, totals, f"{num_utterances:,} utterances, {hours:.2f} hours, {codes:,} codes", share, job.num_parts)
    problems.raise_if_over_limit(f"the other {num_utterances:,} utterances were encoded")


def _learnt(args: argparse.Namespace) -> Path:
    """The folder of the codec, learnt now unless it was before."""
    import torch

    torch.set_num_threads(1)  # the result depends on the number of threads
    folder: Path = args.codec_out or args.out / "codec"
    settings = {name: getattr(args, name) for name in ("sample_rate", "frame_rate", "codebook_size", "seed")}
    learn_codec(args.manifest, settings, folder, args.audio_root)
    return folder


def add_parser(subparsers: Any) -> None:
    """Add the command `encode`."""
    parser = subparsers.add_parser(
        "encode",
        help="turn the manifest's audio into codes (and learn the built-in codec)",
        description="Turn the audio of a manifest into discrete codes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest to encode")
    parser.add_argument("--codec", required=True, help="NAME:FOLDER of a codec, or melvq with --train-codec")
    parser.add_argument("--codebooks", type=int, metavar="K", help="of a codec of several codebooks, use the first K")
    parser.add_argument(
        "--codec-dtype",
        choices=["float32", "bfloat16"],
        help="precision of glm4voice's layers (default: bfloat16 on CUDA, else float32)",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the codes")
    parser.add_argument("--audio-root", type=Path, help="folder that all audio lies in (default: the manifest's)")
    parser.add_argument("--part-size", type=int, default=PART_SIZE, help=f"lines of a part (default {PART_SIZE})")
    parser.add_argument("--max-errors", type=int, default=0, help="bad lines or files allowed (default 0)")
    parser.add_argument("--retry", action="store_true", help="make parts again in which something could not be read")
    add_arguments(parser)
    learning = parser.add_argument_group("learning melvq")
    learning.add_argument("--train-codec", action="store_true", help="learn the codec from this manifest first")
    learning.add_argument("--codec-out", type=Path, help="where to save it (default: OUT/codec)")
    learning.add_argument("--sample-rate", type=int, default=16000, help="Hz (default 16000)")
    learning.add_argument("--frame-rate", type=float, default=25.0, help="codes per second (default 25)")
    learning.add_argument("--codebook-size", type=int, default=512, help="codes (default 512)")
    learning.add_argument("--seed", type=int, default=0, help="of the codebook (default 0)")
    parser.set_defaults(func=run, fail=parser.error)
