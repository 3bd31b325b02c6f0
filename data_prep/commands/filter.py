"""`data_prep filter`: keeps the lines of a manifest that the rules allow, as they were read, and cleans their texts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from data_prep.commands.flags import add_max_errors
from data_prep.corpus_report import report_of
from data_prep.manifest_files import ManifestFile, writing_manifests
from data_prep.selection.expressions import fields_of
from data_prep.selection.measures import measure
from data_prep.selection.rules import IsNew, Rule, bounds, holds, is_among
from data_prep.selection.text_rules import FLAG, TextRule, has_lost_its_words, read_text_rules, rewritten
from ttt_dist.manifest.entry import with_paths
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import Line, entry_line, read_batches
from ttt_dist.util.console import Progress, print_rank0, warn
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  python -m data_prep filter --manifest work/all.jsonl --out work/train.jsonl --min duration=0.5 --max duration=20 \\
      --min chars_per_second=4 --max chars_per_second=25 --min confidence=0.95 --lang en,de --unique audio --unique text
  python -m data_prep filter --manifest work/all.jsonl --out work/train.jsonl \\
      --where 'duration < 20 and len(text) > 3 and (speaker != "unknown" or dnsmos >= 3.2)'

FIELD is any field of an entry; chars_per_second and codes_per_second (num_codes / duration) follow from others, and
meta.snr looks into an object. An entry without the field is left out. OUT.report.json counts what was left out by rule.
"""


def select(lines: Sequence[Line], rules: Sequence[Rule], news: Sequence[IsNew], problems: Problems) -> Sequence[Line]:
    """The lines that every rule keeps, then those that are new; of others the first rule against them is counted."""
    kept = [line for line in lines if not _is_left_out(line, rules, problems)] if rules else lines
    for one in news:
        is_new = one.among([entry for _, _, entry in kept])
        for (place, _, _), new in zip(kept, is_new, strict=True):
            if not new:
                problems.skip(one.reason, place)
        kept = list(compress(kept, is_new))
    return kept


def _is_left_out(line: Line, rules: Sequence[Rule], problems: Problems) -> bool:
    for rule in rules:
        if (reason := rule(line[2])) is not None:
            problems.skip(reason, line[0])
            return True
    return False


def clean(lines: Sequence[Line], chain: Sequence[TextRule], problems: Problems) -> list[Line]:
    """The lines with their texts rewritten; one that loses its words is left out, one that changes is written anew."""
    cleaned = []
    for line in lines:
        place, _, entry = line
        changed = rewritten(entry, chain)
        if changed is entry:
            cleaned.append(line)
        elif has_lost_its_words(changed):
            problems.skip(f"no words left by {FLAG}", place)
        else:
            cleaned.append((place, entry_line(changed).encode(), changed))
    return cleaned


def write_lines(lines: Sequence[Line], source: Path, file: ManifestFile) -> None:
    """Write lines as they were read, but those whose relative paths would lead elsewhere from the new manifest's folder."""
    if os.path.realpath(source.parent) == os.path.realpath(file.path.parent):
        file.add_as_read(lines)
        return
    for line in lines:
        entry = line[2]
        opened = with_paths(entry, lambda name: str(source.parent / name))
        if opened == entry:  # all paths are absolute
            file.add_as_read([line])
        else:
            file.add(opened)


def rules_of(args: argparse.Namespace) -> list[Rule]:
    """The rules that the flags name, but for --unique: what that remembers is what all others keep."""
    rules = [is_among(name, getattr(args, name)) for name in ("lang", "speaker") if getattr(args, name)]
    rules += bounds(dict(args.min), dict(args.max))
    return rules + list(map(holds, args.where))


def run(args: argparse.Namespace) -> None:
    """Write what is kept."""
    rules, news = rules_of(args), [IsNew(name) for name in dict.fromkeys(args.unique)]
    chain = read_text_rules(args.text_rules) if args.text_rules else []
    if not rules and not news and not chain:
        args.fail("no rule: give one, e.g. --max duration=20")
    if os.path.realpath(args.manifest) == os.path.realpath(args.out):
        args.fail(f"--out {args.out}: is the manifest that is read; choose another name")
    problems = Problems(args.max_errors)
    unseen = {name for text in args.where for name in fields_of(text)}
    with (
        writing_manifests("filter", args.manifest, [args.out], problems) as (file,),
        Progress(None, "filtering", "line") as progress,
    ):
        for batch in read_batches(args.manifest, problems):
            unseen = {name for name in unseen if not any(measure(name)(entry) is not None for _, _, entry in batch)}
            cleaned = clean(batch, chain, problems) if chain else batch
            write_lines(select(cleaned, rules, news, problems), args.manifest, file)
            progress.advance(len(batch))
    report, left_out = report_of(args.out), sum(tally.count for tally in problems.skipped.values())
    print_rank0(f"{args.out}: {file.totals.describe()}; left out by rule: {left_out:,} (see {report})")
    for reason, tally in problems.skipped.items():
        print_rank0(f"left out, {reason}: {tally.count:,}")
    for name in sorted(unseen):
        warn(f"--where: no line has a field {name}; is it spelt so?")
    if not file.totals.lines:
        raise UserError(f"{args.out}: no line is left; loosen a rule (see {report})")
    problems.raise_if_over_limit(f"the {file.totals.lines:,} lines that are kept were written")


def bound(text: str) -> tuple[str, float]:
    """`FIELD=NUMBER` as (field, number)."""
    name, _, value = text.partition("=")
    try:
        if name.strip() and (number := float(value)) == number:
            return name.strip(), number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NUMBER, such as duration=0.5")


def names(text: str) -> list[str]:
    """`en,de` as a list."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; write e.g. en,de")
    return found


def add_parser(subparsers: Any) -> None:
    """Add the command `filter`."""
    parser = subparsers.add_parser(
        "filter",
        help="keep the lines of a manifest that rules allow",
        description="Keep the lines of a manifest that every rule allows, as they were read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest to read")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    for flag, what in (("--min", "lowest"), ("--max", "highest")):
        parser.add_argument(
            flag, type=bound, action="append", default=[], metavar="FIELD=NUMBER", help=f"{what} value of a field"
        )
    parser.add_argument("--lang", type=names, action="extend", default=[], metavar="A,B", help="languages to keep")
    parser.add_argument("--speaker", type=names, action="extend", default=[], metavar="A,B", help="speakers to keep")
    parser.add_argument(
        "--where", action="append", default=[], metavar="EXPRESSION", help="keep where it is true: see docs/data.md"
    )
    parser.add_argument(
        "--unique", action="append", default=[], metavar="FIELD", help="keep the first of each: audio, text, or a field"
    )
    parser.add_argument(
        "--text-rules", type=Path, metavar="YAML", help="rewrite texts by a chain of rules first: see docs/data.md"
    )
    add_max_errors(parser)
    parser.set_defaults(func=run, fail=parser.error)
