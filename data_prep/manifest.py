"""Manifests: one JSON object per line and utterance. Reading, checking and writing them, and the command that lists
a corpus.

Fields: `id`, `audio` (a path, or a list of paths that are joined; relative ones start from the manifest's folder),
`gaps` (seconds of silence before each path of a list), `offset` and `duration` (seconds), `text`, `lang`, `speaker`,
`split`, and any others, which are kept. What is bad is reported by file and line, counted, and left out; a job with
more bad lines than `--max-errors` allows keeps its good work and ends with exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ttt_dist.errors import UserError
from ttt_dist.files import atomic_write
from ttt_dist.telemetry.console import Progress, say, warn

Entry = dict[str, Any]

EXAMPLES = """examples:
  python -m data_prep manifest --reader librispeech --source LibriSpeech/train-clean-100 --out work/train.jsonl
  python -m data_prep manifest --reader pattern --pattern '{text}_{speaker}_{index}.wav' --source recordings \\
      --out work/train.jsonl --holdout-every 10 --holdout-field index --holdout-out work/valid.jsonl
  python -m data_prep manifest --reader jsonl --source my-corpus.jsonl --out work/train.jsonl

Bad files and lines are reported and left out, the good ones are written. With more bad ones than --max-errors the
exit status is 1.
"""


@dataclass
class Problems:
    """Counts what a job had to leave out; `settle` fails where that is more than the user allowed."""

    limit: int = 0
    count: int = 0
    told: int = field(default=20, repr=False)  # warnings printed one by one; beyond, only the count grows

    def report(self, message: str | Exception) -> None:
        """Warn of one bad file or line."""
        self.count += 1
        if self.count <= self.told:
            warn(str(message))
        elif self.told and self.count == self.told + 1:
            warn("more of the same follows and is only counted")

    def settle(self, kept: str) -> None:
        """To be called when all else is done; `kept` says what was made. Raises UserError above the limit."""
        if self.count > self.limit:
            raise UserError(
                f"{self.count} bad files or lines were left out (see the warnings), more than --max-errors "
                f"{self.limit} allows; {kept}"
            )


def parse_entry(line: str, place: str) -> Entry:
    """One line of a manifest, checked. Raises UserError that starts with `place` (file:line) and names the field."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: is not JSON ({error}); write one JSON object per line") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place}: is {type(entry).__name__}, not an object; write one JSON object per line")
    audio = entry.get("audio")
    if not audio:
        raise UserError(f"{place}: field 'audio' is missing or empty; give the path of the recording")
    if not (isinstance(audio, str) or (isinstance(audio, list) and all(isinstance(part, str) for part in audio))):
        raise UserError(f"{place}: field 'audio' is neither a path nor a list of paths; correct it")
    text = entry.get("text")
    if not isinstance(text, str):
        raise UserError(f"{place}: field 'text' is missing or no string; give the words that are spoken")
    if not text.strip():
        raise UserError(f"{place}: field 'text' is empty; give the words that are spoken, or remove the line")
    _check_numbers(entry, place)
    return entry


def _check_numbers(entry: Entry, place: str) -> None:
    for name in ("offset", "duration"):
        value = entry.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise UserError(f"{place}: field '{name}' is {value!r}; give seconds, 0 or more")
    gaps = entry.get("gaps")
    if gaps is None:
        return
    parts = entry["audio"]
    if not isinstance(parts, list) or not isinstance(gaps, list) or len(gaps) != len(parts):
        raise UserError(f"{place}: field 'gaps' does not have one number per path of 'audio'; correct it")
    if any(isinstance(gap, bool) or not isinstance(gap, int | float) or not gap >= 0 for gap in gaps):
        raise UserError(f"{place}: field 'gaps' holds something other than seconds of 0 or more; correct it")


def numbered_lines(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line that is not blank; a line that is not UTF-8 is reported."""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                place = f"{path}:{number}"
                try:
                    line = raw.decode("utf-8").strip()
                except UnicodeDecodeError as error:
                    problems.report(f"{place}: is not UTF-8 ({error.reason}); convert the file")
                    continue
                if line:
                    yield place, line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from error


def read_manifest(path: Path, problems: Problems) -> Iterator[tuple[str, Entry]]:
    """(`file:line`, entry) of every good line in order; bad ones, and ids that came before, are reported.

    An entry without `id` gets one from its line number.
    """
    seen: set[str] = set()
    for place, line in numbered_lines(path, problems):
        try:
            entry = parse_entry(line, place)
        except UserError as error:
            problems.report(error)
            continue
        entry["id"] = str(entry.get("id") or f"{path.stem}-{place.rpartition(':')[2]}")
        if entry["id"] in seen:
            problems.report(f"{place}: id {entry['id']!r} came before; make ids unique")
            continue
        seen.add(entry["id"])
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
                    f"{entry['audio']}: field '{self.field}' is {entry.get(self.field)!r}, not an integer; "
                    "name another --holdout-field"
                ) from error
        return number % self.every == self.every - 1


def split_entries(
    entries: Iterable[Entry], out: Path, holdout_out: Path | None, holdout: Holdout | None, problems: Problems
) -> tuple[int, int]:
    """Write the manifest(s), paths as `relocate` names them; returns how many entries were kept and held out."""
    kept = held = 0
    with ExitStack() as stack:
        file = stack.enter_context(atomic_write(out))
        held_file = stack.enter_context(atomic_write(holdout_out)) if holdout_out else None
        for entry in entries:
            try:
                takes = holdout is not None and holdout.takes(entry, kept + held)
            except UserError as error:
                problems.report(error)
                continue
            target, folder = (held_file, holdout_out) if takes and holdout_out else (file, out)
            kept, held = kept + (not takes), held + takes
            assert target is not None
            assert folder is not None
            audio = entry["audio"]
            parts = [relocate(Path(part), folder.parent) for part in ([audio] if isinstance(audio, str) else audio)]
            write_entry(target, {**entry, "audio": parts[0] if isinstance(audio, str) else parts})
    return kept, held


def run(args: argparse.Namespace) -> None:
    """List a corpus."""
    from data_prep.readers import READERS, ReaderOptions

    if (args.holdout_every is None) != (args.holdout_out is None):
        args.fail("--holdout-every and --holdout-out: give both, or neither")
    if args.holdout_every is not None and args.holdout_every < 2:
        args.fail(f"--holdout-every {args.holdout_every}: at least 2 is needed")
    if args.reader == "pattern" and not args.pattern:
        args.fail("--pattern: reader pattern needs one, e.g. '{text}_{speaker}_{index}.wav'")
    holdout = Holdout(args.holdout_every, args.holdout_field) if args.holdout_every else None
    problems = Problems(args.max_errors)
    options = ReaderOptions(Path(args.source), args.pattern, args.lang)
    with Progress(None, "reading", "utterance") as progress:
        entries = _counted(READERS[args.reader](options, problems), progress)
        kept, held = split_entries(entries, args.out, args.holdout_out, holdout, problems)
    if not kept + held:
        raise UserError(f"{args.source}: reader {args.reader} found no utterance there; correct --source or --reader")
    say(f"{args.out}: {kept:,} utterances" + (f"; {args.holdout_out}: {held:,} held out" if holdout else ""))
    problems.settle(f"the {kept + held:,} good ones were written")


def _counted(entries: Iterable[Entry], progress: Progress) -> Iterator[Entry]:
    for entry in entries:
        progress.advance()
        yield entry


def add_parser(subparsers: Any) -> None:
    """Add the command `manifest`."""
    parser = subparsers.add_parser(
        "manifest",
        help="list a corpus as JSONL, one utterance per line",
        description="List a corpus as a manifest: JSONL, one utterance per line.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reader", required=True, choices=["jsonl", "librispeech", "pattern"], help="corpus layout")
    parser.add_argument("--source", required=True, help="folder of the corpus; for jsonl the file")
    parser.add_argument("--pattern", help="for reader pattern: file names, e.g. '{text}_{speaker}_{index}.wav'")
    parser.add_argument("--lang", help="language code to note in every entry, e.g. en")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    parser.add_argument("--holdout-every", type=int, metavar="N", help="hold out every N-th: numbers N-1, 2N-1, ...")
    parser.add_argument("--holdout-field", help="integer field to count by; without it the position counts")
    parser.add_argument("--holdout-out", type=Path, help="manifest of what is held out")
    parser.add_argument("--max-errors", type=int, default=0, help="bad files or lines allowed (default 0)")
    parser.set_defaults(func=run, fail=parser.error)
