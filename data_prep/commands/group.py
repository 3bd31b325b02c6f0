"""Documents of several utterances: consecutive entries of one chapter or one long recording become one entry.

No audio is written: the entry's `segments` name the recordings (`audio`, `member`, `offset`, `duration`) and what is
said in each, for samples in which text and speech take turns over a minute instead of a sentence.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.commands.flags import add_max_errors
from data_prep.manifest_files import writing_manifests
from ttt_dist.manifest.entry import Entry, with_paths
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  python -m data_prep group --manifest work/librispeech.jsonl --by chapter --max-seconds 60 --out work/chapters.jsonl
  python -m data_prep group --manifest work/gigaspeech.jsonl --by audio --max-seconds 60 --out work/documents.jsonl
"""

OF_A_SEGMENT = ("text", "audio", "member", "channel", "offset", "duration")


def group_entries(entries: Iterable[Entry], by: str, max_seconds: float) -> Iterator[Entry]:
    """Entries with `segments`, of consecutive entries with one value of the field `by`, each of at most `max_seconds`.

    An entry that is longer by itself is a group by itself. Entries must have `text`, one recording and `duration`.
    """
    group: list[Entry] = []
    seconds = 0.0
    for entry in entries:
        longer = seconds + entry["duration"] > max_seconds
        if group and (longer or _key(entry, by) != _key(group[0], by)):
            yield join(group)
            group, seconds = [], 0.0
        group.append(entry)
        seconds += entry["duration"]
    if group:
        yield join(group)


def _key(entry: Entry, by: str) -> tuple[Any, Any]:
    """A recording inside a container is told from its neighbours by `member`."""
    return entry[by], entry.get("member") if by == "audio" else None


def join(group: list[Entry]) -> Entry:
    """One entry of several: fields on which all agree stay fields of the entry; its id is `FIRST+N` for N more."""
    first = group[0]
    shared = {
        name: value
        for name, value in first.items()
        if name not in ("id", *OF_A_SEGMENT) and all(name in entry and entry[name] == value for entry in group)
    }
    return {
        "id": f"{first['id']}+{len(group) - 1}",
        "segments": [{name: entry[name] for name in OF_A_SEGMENT if name in entry} for entry in group],
        "duration": round(sum(entry["duration"] for entry in group), 6),
        **shared,
    }


def read_groupable(path: Path, by: str, problems: Problems) -> Iterator[Entry]:
    """The manifest's single recordings with text, paths as this process can open them; others are reported."""
    for place, entry in read_manifest(path, problems):
        if entry.get("turns") or entry.get("segments") or entry.get("speech") or not isinstance(entry["audio"], str):
            problems.report(f"{place}: is not one recording, so it cannot be grouped; remove it", "not groupable")
        elif not entry.get("text") or not entry.get("duration"):
            message = f"{place}: lacks 'text' or 'duration'; list the corpus by data_prep manifest"
            problems.report(message, "not groupable")
        elif entry.get(by) is None:
            problems.report(f"{place}: field '{by}' is missing; name another --by, or fill it in", "not groupable")
        else:
            yield with_paths(entry, lambda name: str(path.parent / name))


def run(args: argparse.Namespace) -> None:
    """Write a manifest of groups."""
    if not args.max_seconds > 0:
        args.fail(f"--max-seconds {args.max_seconds:g}: more than 0 is needed")
    if os.path.abspath(args.manifest) == os.path.abspath(args.out):
        args.fail(f"--out {args.out}: is the manifest that is read; choose another name")
    problems = Problems(args.max_errors)
    segments = 0
    entries = read_groupable(args.manifest, args.by, problems)
    with (
        writing_manifests("group", args.manifest, [args.out], problems) as (file,),
        Progress(None, "grouping", "group") as progress,
    ):
        for entry in group_entries(entries, args.by, args.max_seconds):
            file.add(entry)
            segments += len(entry["segments"])
            progress.advance()
        if not segments:
            raise UserError(f"{args.manifest}: holds no entry that can be grouped by '{args.by}'")
    print_rank0(f"{args.out}: {segments:,} utterances in groups: {file.totals.describe()}")
    problems.raise_if_over_limit(f"{file.totals.lines:,} groups were written from the good ones")


def add_parser(subparsers: Any) -> None:
    """Add the command `group`."""
    parser = subparsers.add_parser(
        "group",
        help="join consecutive utterances into documents",
        description="Join consecutive entries with the same value of a field into entries of several segments.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest of the utterances, in their order")
    parser.add_argument("--by", required=True, help="field that tells documents apart, e.g. chapter or audio")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of speech in one entry (default 60)")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    add_max_errors(parser)
    parser.set_defaults(func=run, fail=parser.error)
