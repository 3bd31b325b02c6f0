"""Encoding: the audio of a manifest becomes discrete codes, in parts of so many lines each.

OUT/part-00000.bin, .idx hold the codes (Megatron indexed data set, int32: a document per utterance, a sequence per
recording of it); .jsonl the manifest lines in the same order, with their paths as this manifest names them and a hash of
their audio; .json what they were made from, counts, problems and a checksum per file, written last: a part is complete
where its .json is. OUT/codec is the codec, or says where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.corpus_report import provenance
from data_prep.entry import Entry, parse_line, with_paths
from data_prep.jobs import Outcome, PartJob, Tick, add_arguments, run_parts, share_of, tell
from data_prep.learn import learn_codec
from data_prep.manifest import Problems, relocate, write_entry
from data_prep.parts import (
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
from ttt_dist.data.metadata import checksums_beside, with_suffix
from ttt_dist.errors import UserError
from ttt_dist.files import commit, remove_leftovers, temporary_name, writing
from ttt_dist.leases import lease
from ttt_dist.sequence.clips import clips

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from ttt_dist.audio import Codec, UtteranceReader
    from ttt_dist.audio.codec import Codes

FORMAT = "ttt_dist codes 1"
PART_SIZE = 8192
WINDOW_SECONDS = 1200.0  # audio held in memory at once: 77 MB at 16 kHz
WINDOW_UTTERANCES = 4096
BATCH_SECONDS = 120.0  # audio handed to the codec at once
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
class EncodeJob(PartJob):
    """The parts of a manifest, and what they are encoded with."""

    ranges: list[LineRange]
    codec: str
    codebooks: int | None
    out: Path
    audio_root: Path | None
    retry: bool = False
    """Make parts again that had problems."""
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
        import torch

        from ttt_dist.audio import UtteranceReader, load_codec

        torch.set_num_threads(1)  # --workers use the cores; and nothing may depend on their number
        self.loaded: Codec = load_codec(self.codec, codebooks=self.codebooks)
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

    def make(self, number: int, tick: Tick) -> Outcome:
        """Write the part."""
        problems: list[str] = []
        counts = {"utterances": 0, "codes": 0, "seconds": 0.0}
        folder = self.ranges[number].path.parent
        with PartWriter(self.prefix(number)) as writer:
            for window in _windows(self._entries(number, problems), self.reader, problems, tick):
                waves = [wave for _, recordings in window for wave in recordings]
                codes = iter(encode_sorted(self.loaded, waves))
                for entry, recordings in window:
                    sound = {"audio_hash": hash_of(recordings)}
                    of_entry = [next(codes) for _ in recordings]
                    here = with_paths(entry, lambda path: relocate(folder / path, self.out))
                    writer.add({**here, **sound}, of_entry)
                    counts["utterances"] += 1
                    counts["codes"] += sum(map(len, of_entry))
                    counts["seconds"] += sum(map(len, recordings)) / self.loaded.sample_rate
            counts["seconds"] = round(counts["seconds"], 3)
            made = {"made_from": self._made_from(number), "codec": self.loaded.describe(), "versions": versions()}
            made["manifest"] = provenance(self.ranges[number].path)
            writer.finish({**made, "part": number, "parts": self.num_parts, "counts": counts, "problems": problems})
        return Outcome(dict(counts), problems)

    def _entries(self, number: int, problems: list[str]) -> Iterator[tuple[str, Entry]]:
        """The part's good lines; bad ones, and ids that came before in the part, become problems."""
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
                problems.append(str(error))
            else:
                seen.add(entry["id"])
                yield place, entry


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


def encode_sorted(codec: Codec, waves: list[Tensor]) -> list[Codes]:
    """Codes in the order of `waves`, encoded in batches of similar length (a codec may pad its batch)."""
    order = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    codes: list[Codes | None] = [None] * len(waves)
    limit = BATCH_SECONDS * codec.sample_rate
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(waves[order[stop]]) <= limit:
            stop += 1
        batch = order[start:stop]
        for i, result in zip(batch, codec.encode([waves[i] for i in batch]), strict=True):
            codes[i] = result
        start = stop
    return [result for result in codes if result is not None]


class PartWriter:
    """Writes PREFIX.bin, .idx and .jsonl under temporary names; `finish` gives them their names, then writes .json.

    Use as a context manager: left without `finish`, it removes what it wrote.
    """

    def __init__(self, prefix: Path) -> None:
        from ttt_dist.data.indexed import new_builder  # megatron-core takes seconds to import

        self.prefix = prefix
        self.paths = {kind: with_suffix(prefix, f".{kind}") for kind in KINDS}
        self._num_codes = 0
        remove_leftovers(*self.paths.values(), with_suffix(prefix, ".json"))
        with writing(prefix):
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._builder = new_builder(temporary_name(self.paths["bin"]), multimodal=False)
            self._lines: IO[str] = temporary_name(self.paths["jsonl"]).open("w", encoding="utf-8")

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._builder.data_file, self._lines):
            with contextlib.suppress(OSError):  # a full disk: the write has raised it, and the file goes now
                file.close()
        for path in self.paths.values():
            temporary_name(path).unlink(missing_ok=True)

    def add(self, entry: Entry, codes: Sequence[Codes]) -> None:
        """Append one utterance: the codes of each of its clips."""
        with writing(self.paths["bin"]):
            for one in codes:
                self._builder.add_item(one)
                self._num_codes += len(one)
            self._builder.end_document()
        with writing(self.paths["jsonl"]):
            write_entry(self._lines, entry)

    def finish(self, meta: dict[str, Any]) -> None:
        """Name the files and write PREFIX.json: `meta`, and size and SHA-256 of each."""
        with writing(self.paths["idx"]):
            self._builder.finalize(temporary_name(self.paths["idx"]))
        with writing(self.paths["jsonl"]):
            self._lines.close()
        files = {path.name: describe_file(temporary_name(path)) for path in self.paths.values()}
        with_suffix(self.prefix, ".json").unlink(missing_ok=True)
        for path in self.paths.values():
            with writing(path):
                commit(temporary_name(path), path)
        write_part(self.prefix, {**meta, "files": files, "beside": checksums_beside(self.prefix.parent)})


Recordings = tuple[Entry, "list[Tensor]"]
"""An entry and the waveforms of its clips."""


def _windows(
    entries: Iterator[tuple[str, Entry]], reader: UtteranceReader, problems: list[str], tick: Tick
) -> Iterator[list[Recordings]]:
    """Entries with their audio, in stretches that memory holds; what cannot be read becomes a problem."""
    window: list[Recordings] = []
    samples = 0
    for place, entry in entries:
        try:
            waves = [reader.read(clip) for clip in clips(entry)]
        except UserError as error:
            problems.append(f"{place}: {error}")
            continue
        window.append((entry, waves))
        samples += sum(map(len, waves))
        if samples >= WINDOW_SECONDS * reader.sample_rate or len(window) >= WINDOW_UTTERANCES:
            yield window
            tick(len(window))
            window, samples = [], 0
    if window:
        yield window
        tick(len(window))


def run(args: argparse.Namespace) -> None:
    """Learn the codec where asked to, then encode this task's parts."""
    if args.part_size < 1:
        args.fail(f"--part-size {args.part_size}: at least 1 line is needed")
    share = share_of(args)
    spec = args.codec
    if args.train_codec:
        if args.codec != "melvq":
            args.fail(f"--train-codec: only the built-in codec can be learnt; write --codec melvq, not {args.codec}")
        spec = f"melvq:{_learnt(args)}"
    problems = Problems(args.max_errors)
    ranges = cut_lines(args.manifest, args.part_size)
    require_no_others(args.out, len(ranges))
    job = EncodeJob(ranges, spec, args.codebooks, args.out, args.audio_root, args.retry)
    totals = run_parts(job, share, problems)
    counts = totals.counts
    num_utterances = int(counts.get("utterances", 0))
    if totals.parts and not num_utterances:
        for number in share.of(job.num_parts):
            remove_part(job.prefix(number))
        raise UserError(f"{args.manifest}: none of its utterances could be encoded ({problems.count} bad)")
    hours, codes = counts.get("seconds", 0) / 3600, int(counts.get("codes", 0))
    tell(args.out, totals, f"{num_utterances:,} utterances, {hours:.2f} hours, {codes:,} codes", share, job.num_parts)
    problems.settle(f"the other {num_utterances:,} utterances were encoded")


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
