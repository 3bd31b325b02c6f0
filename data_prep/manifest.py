"""Manifests: one JSON object per line and utterance. Reading and writing them, and the command that lists a corpus.

Fields: `id`, `audio` (a path, or a list of paths that are joined; relative ones start from the manifest's folder),
`member` (which part of a container file), `gaps` (seconds of silence before each path of a list), `offset` and
`duration` (seconds), `text` or `label`, `turns`, `segments`, `speech` (see data_prep/entry.py), `lang`, `speaker`,
`split`, and any others, which are kept. What is bad is reported by file and line, counted, and left out; a job with
more bad lines than `--max-errors` allows keeps its good work and ends with exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_prep.corpus_report import Totals, report_of, write_report
from data_prep.entry import Entry, decode_line, parse_entry, parse_line, with_paths
from data_prep.problems import Problems
from data_prep.readers import READERS, ReaderOptions, load_reader
from ttt_dist.errors import UserError
from ttt_dist.files import atomic_write, remove_leftovers
from ttt_dist.leases import require_lease
from ttt_dist.telemetry.console import Progress, say

__all__ = [
    "Entry",
    "Problems",
    "SeenIds",
    "numbered_lines",
    "parse_entry",
    "parse_line",
    "read_manifest",
    "relocate",
    "with_paths",
    "write_entry",
]

ONLY_FOR = {
    "pattern": ("pattern",),
    "subset": ("gigaspeech", "wenetspeech"),
    "columns": ("captions", "hf", "table"),
    "split": tuple(name for name in READERS if name != "emilia"),  # which has none
}
RECENT_IDS = 2**18  # in a set of Python's; older ones in a sorted array of 8 bytes each

EXAMPLES = """examples:
  python -m data_prep manifest --reader librispeech --source LibriSpeech/train-clean-100 --out work/train.jsonl
  python -m data_prep manifest --reader pattern --pattern '{text}_{speaker}_{index}.wav' --source recordings \\
      --out work/train.jsonl --holdout-every 10 --holdout-field index --holdout-out work/valid.jsonl
  python -m data_prep manifest --reader hf --source my-dataset --columns text=sentence --split train --out work/train.jsonl
  python -m data_prep manifest --reader jsonl --source my-corpus.jsonl --out work/train.jsonl

Bad files and lines are reported and left out, the good ones are written. With more bad ones than --max-errors the
exit status is 1. OUT.report.json says how much there is, and what was left out and why.
"""


class SeenIds:
    """Which ids came before, in 8 bytes each: a manifest may have hundreds of millions.

    Kept are 64-bit hashes. Of 300 million ids two different ones share a hash with a probability of 0.3 %: one of them
    would then be reported as a repetition.
    """

    def __init__(self) -> None:
        self._old: memoryview | list[int] = []  # sorted
        self._recent: set[int] = set()

    def add(self, name: str) -> bool:
        """Remember an id; False where it came before."""
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        at = bisect_left(self._old, key)
        if key in self._recent or (at < len(self._old) and self._old[at] == key):
            return False
        self._recent.add(key)
        if len(self._recent) >= RECENT_IDS:
            self._merge()
        return True

    def _merge(self) -> None:
        import numpy as np

        merged = np.concatenate([np.asarray(self._old, np.uint64), np.fromiter(self._recent, np.uint64)])
        merged.sort(kind="stable")
        self._old = merged.data  # a memoryview: its items are Python's integers, which compare faster than numpy's
        self._recent.clear()


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, bytes) of every line. Raises UserError where the file cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                yield f"{path}:{number}", raw
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path or its permissions") from error


def numbered_lines(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line that is not blank; a line that is not UTF-8 is reported."""
    for place, raw in raw_lines(path):
        try:
            line = decode_line(raw, place)
        except UserError as error:
            problems.report(error, "not UTF-8")
            continue
        if line:
            yield place, line


def read_manifest(path: Path, problems: Problems) -> Iterator[tuple[str, Entry]]:
    """(`file:line`, entry) of every good line in order; bad ones, and ids that came before, are reported.

    An entry without `id` gets one from its line number.
    """
    seen = SeenIds()
    for place, line in numbered_lines(path, problems):
        try:
            entry = parse_entry(line, place)
        except UserError as error:
            problems.report(error)
            continue
        entry["id"] = str(entry.get("id") or f"{path.stem}-{place.rpartition(':')[2]}")
        if not seen.add(entry["id"]):
            problems.report(f"{place}: id {entry['id']!r} came before; make ids unique", "id came before")
            continue
        yield place, entry


def write_entry(file: IO[str], entry: Entry) -> None:
    """Append one line."""
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def relocate(audio: Path, folder: Path) -> str:
    """How a manifest in `folder` names `audio`: relative where it lies below, else absolute."""
    absolute, base = Path(os.path.abspath(audio)), Path(os.path.abspath(folder))
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else absolute.as_posix()


@dataclass(frozen=True)
class Holdout:
    """Which entries go to the held-out manifest: every n-th, by an integer field or (field None) by position."""

    every: int
    field: str | None

    def takes(self, entry: Entry, position: int) -> bool:
        """Whether the entry is held out: its number is n - 1, 2n - 1, ... Raises UserError on a bad field."""
        number = position
        if self.field is not None:
            try:
                number = int(entry[self.field])
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(
                    f"{entry.get('id')}: field '{self.field}' is {entry.get(self.field)!r}, not an integer; "
                    "name another --holdout-field"
                ) from error
        return number % self.every == self.every - 1


class ManifestFile:
    """A manifest being written: paths as `relocate` names them, and the totals of what was written."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self.totals = Totals()
        self._file = file

    def add(self, entry: Entry) -> None:
        """Append one entry, whose paths this process can open."""
        write_entry(self._file, with_paths(entry, lambda name: relocate(Path(name), self.path.parent)))
        self.totals.add(entry)


@contextmanager
def writing_manifests(
    made_by: str, source: Path, paths: Sequence[Path], problems: Problems
) -> Iterator[list[ManifestFile]]:
    """Manifests that appear whole when the block ends, and beside the first the report on all of them.

    Raises UserError where another job is writing one of them.
    """
    report = report_of(paths[0])
    with ExitStack() as leases:
        for path in paths:
            leases.enter_context(require_lease(path))
        remove_leftovers(*paths, report)
        with ExitStack() as stack:
            files = [ManifestFile(path, stack.enter_context(atomic_write(path))) for path in paths]
            yield files
        write_report(report, made_by, source, {file.path: file.totals for file in files}, problems)


def split_entries(
    entries: Iterable[Entry], files: Sequence[ManifestFile], holdout: Holdout | None, problems: Problems
) -> None:
    """Write what is kept to the first manifest, what `holdout` takes to the second.

    An id that came before is reported and left out.
    """
    seen = SeenIds()
    position = 0
    for entry in entries:
        try:
            takes = holdout is not None and holdout.takes(entry, position)
        except UserError as error:
            problems.report(error)
            continue
        if not seen.add(entry["id"]):
            message = f"{entry['id']}: this id came before; read one split at a time, or make ids unique"
            problems.report(message, "id came before")
            continue
        files[takes].add(entry)
        position += 1


def run(args: argparse.Namespace) -> None:
    """List a corpus."""
    if (args.holdout_every is None) != (args.holdout_out is None):
        args.fail("--holdout-every and --holdout-out: give both, or neither")
    if args.holdout_every is not None and args.holdout_every < 2:
        args.fail(f"--holdout-every {args.holdout_every}: at least 2 is needed")
    if args.reader == "pattern" and not args.pattern:
        args.fail("--pattern: reader pattern needs one, e.g. '{text}_{speaker}_{index}.wav'")
    for name, readers in ONLY_FOR.items():
        if getattr(args, name) and args.reader not in readers:
            args.fail(f"--{name}: is for reader {', '.join(readers)}, not {args.reader}")
    holdout = Holdout(args.holdout_every, args.holdout_field) if args.holdout_every else None
    problems = Problems(args.max_errors)
    options = ReaderOptions(
        Path(args.source), args.pattern, args.lang, args.split, args.subset, columns=args.columns or {}
    )
    paths = [args.out, args.holdout_out] if args.holdout_out else [args.out]
    with (
        writing_manifests(args.reader, options.source, paths, problems) as files,
        Progress(None, "reading", "utterance") as progress,
    ):
        split_entries(_counted(load_reader(args.reader)(options, problems), progress), files, holdout, problems)
    report, lines = report_of(args.out), sum(file.totals.lines for file in files)
    if not lines:
        raise UserError(
            f"{args.source}: reader {args.reader} found no utterance there; correct --source or --reader (see {report})"
        )
    say("; ".join(f"{file.path}: {file.totals.describe()}" for file in files))
    for reason, tally in problems.skipped.items():
        say(f"skipped, {reason}: {tally.count:,} (see {report})")
    problems.settle(f"the {lines:,} good ones were written")


def _counted(entries: Iterable[Entry], progress: Progress) -> Iterator[Entry]:
    for entry in entries:
        progress.advance()
        yield entry


def columns(text: str) -> dict[str, str]:
    """`audio=path,text=sentence` as {field: column}."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and column.strip() for name, _, column in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=COLUMN,..., such as audio=path,text=sentence")
    return {name.strip(): column.strip() for name, _, column in pairs}


def add_parser(subparsers: Any) -> None:
    """Add the command `manifest`."""
    parser = subparsers.add_parser(
        "manifest",
        help="list a corpus as JSONL, one utterance per line",
        description="List a corpus as a manifest: JSONL, one utterance per line.",
        epilog=EXAMPLES + "\nreaders:\n" + "\n".join(f"  {name:<12} {reader.help}" for name, reader in READERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reader", required=True, choices=sorted(READERS), metavar="NAME", help="layout: see below")
    parser.add_argument("--source", required=True, help="folder or file of the corpus")
    parser.add_argument("--pattern", help="for reader pattern: file names, e.g. '{text}_{speaker}_{index}.wav'")
    parser.add_argument("--lang", help="language code to note in every entry, e.g. en")
    parser.add_argument("--split", help="keep this split of the corpus only, e.g. train")
    parser.add_argument("--subset", help="for wenetspeech, gigaspeech: keep this subset only, e.g. M")
    parser.add_argument(
        "--columns",
        type=columns,
        metavar="FIELD=COLUMN,...",
        help="for table, captions, hf: e.g. text=sentence,lang=code",
    )
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    parser.add_argument("--holdout-every", type=int, metavar="N", help="hold out every N-th: numbers N-1, 2N-1, ...")
    parser.add_argument("--holdout-field", help="integer field to count by; without it the position counts")
    parser.add_argument("--holdout-out", type=Path, help="manifest of what is held out")
    parser.add_argument("--max-errors", type=int, default=0, help="bad files or lines allowed (default 0)")
    parser.set_defaults(func=run, fail=parser.error)
