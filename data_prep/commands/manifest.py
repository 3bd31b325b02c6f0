"""`data_prep manifest`: lists a corpus as a manifest, an entry per line (ttt_dist/manifest/reading.py says of what)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.channels import CHOICES, with_channels
from data_prep.commands.flags import add_max_errors
from data_prep.corpus_report import report_of
from data_prep.manifest_files import ManifestFile, writing_manifests
from data_prep.readers import FLAGS, READERS, ReaderOptions, find_reader, load_reader
from ttt_dist.data.metadata import with_suffix
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import SeenIds
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import split_spec

EXAMPLES = """examples:
  python -m data_prep manifest --reader librispeech --source LibriSpeech/train-clean-100 --out work/train.jsonl
  python -m data_prep manifest --reader pattern --pattern '{text}_{speaker}_{index}.wav' --source recordings \\
      --out work/train.jsonl --holdout-every 10 --holdout-field index --holdout-out work/valid.jsonl
  python -m data_prep manifest --reader hf --source my-dataset --columns text=sentence --split train --out work/train.jsonl
  python -m data_prep manifest --reader jsonl --source my-corpus.jsonl --out work/train.jsonl

Bad files and lines are reported and left out, the good ones are written. With more bad ones than --max-errors the
exit status is 1. OUT.report.json says how much there is, and what was left out and why.
"""


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
    takes = find_reader(args.reader).takes
    for name in FLAGS:
        if getattr(args, name) and name not in takes:
            own = f"; one of your own says so by its `takes = ({name!r},)`" if args.reader not in READERS else ""
            args.fail(
                f"--{name.replace('_', '-')}: is for reader {', '.join(readers_with(name))}, not {args.reader}{own}"
            )
    holdout = Holdout(args.holdout_every, args.holdout_field) if args.holdout_every else None
    problems = Problems(args.max_errors)
    options = ReaderOptions(
        source=Path(args.source),
        pattern=args.pattern,
        lang=args.lang,
        split=args.split,
        subset=args.subset,
        columns=args.columns or {},
        audio_root=args.audio_root,
        pipes=with_suffix(args.out, ".pipes") if args.allow_pipes else None,
    )
    paths = [args.out, args.holdout_out] if args.holdout_out else [args.out]
    with (
        writing_manifests(args.reader, options.source, paths, problems) as files,
        Progress(None, "reading", "utterance") as progress,
    ):
        entries = with_channels(load_reader(args.reader)(options, problems), CHOICES[args.channel], problems)
        split_entries(_counted(entries, args.lang, progress), files, holdout, problems)
    report, lines = report_of(args.out), sum(file.totals.lines for file in files)
    if not lines:
        raise UserError(
            f"{args.source}: reader {args.reader} found no utterance there; correct --source or --reader (see {report})"
        )
    print_rank0("; ".join(f"{file.path}: {file.totals.describe()}" for file in files))
    for reason, tally in problems.skipped.items():
        print_rank0(f"skipped, {reason}: {tally.count:,} (see {report})")
    problems.raise_if_over_limit(f"the {lines:,} good ones were written")


def readers_with(flag: str) -> list[str]:
    """The readers that take one of FLAGS."""
    return [name for name, reader in READERS.items() if flag in reader.takes]


def _counted(entries: Iterable[Entry], lang: str | None, progress: Progress) -> Iterator[Entry]:
    """The entries as they come, each in the language that --lang names where the reader knows none."""
    for entry in entries:
        progress.advance()
        yield {"lang": lang, **entry} if lang and not entry.get("lang") else entry


def reader_name(text: str) -> str:
    """A name of READERS, or what may be a function of one's own."""
    if text not in READERS and split_spec(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(READERS)}, and no package.module:function")
    return text


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
        epilog=EXAMPLES + "\nreaders:\n" + "\n".join(f"  {name:<15} {reader.help}" for name, reader in READERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--reader",
        required=True,
        type=reader_name,
        metavar="NAME",
        help="layout: see below, or package.module:function of your own (docs/extending.md)",
    )
    parser.add_argument("--source", required=True, help="folder or file of the corpus")
    parser.add_argument("--pattern", help="for reader pattern: file names, e.g. '{text}_{speaker}_{index}.wav'")
    parser.add_argument("--lang", help="language code to note in every entry, e.g. en")
    parser.add_argument("--split", help="keep this split of the corpus only, e.g. train")
    parser.add_argument("--subset", help=f"for {', '.join(readers_with('subset'))}: keep this subset only, e.g. M")
    parser.add_argument(
        "--columns",
        type=columns,
        metavar="FIELD=COLUMN,...",
        help=f"for {', '.join(readers_with('columns'))}: e.g. text=sentence,lang=code",
    )
    parser.add_argument(
        "--audio-root",
        type=Path,
        help=f"for {', '.join(readers_with('audio_root'))}: where the recordings lie that a table names (default: its folder)",
    )
    parser.add_argument(
        "--allow-pipes",
        action="store_true",
        help=f"for {', '.join(readers_with('allow_pipes'))}: run the shell commands that the corpus gives in place of "
        "recordings, and keep their output in the folder OUT.pipes",
    )
    parser.add_argument(
        "--channel",
        choices=CHOICES,
        default="mix",
        help="of recordings with two: one of them, or each as the turn of a speaker (default: their mean)",
    )
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    parser.add_argument("--holdout-every", type=int, metavar="N", help="hold out every N-th: numbers N-1, 2N-1, ...")
    parser.add_argument("--holdout-field", help="integer field to count by; without it the position counts")
    parser.add_argument("--holdout-out", type=Path, help="manifest of what is held out")
    add_max_errors(parser, "bad files or lines")
    parser.set_defaults(func=run, fail=parser.error)
