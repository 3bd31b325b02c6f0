"""Inputs that were read wrongly, ended in a traceback or were refused without need: what another revision and this build give.

    python -m benchmarks.rows REVISION [--only FILE ...] [--out benchmarks/results/DATE-rows.md]

The checks stand in the files beside this one, each with the answer that is right. A file runs as a script in a checkout of
REVISION and in this one, with the same packages. The last line is one JSON object: checks, and how many each answers rightly.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.against import ROOT, git, worktree
from benchmarks.result_file import head, result_path
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

FOLDER = Path(__file__).resolve().parent
FILES = ("data", "tokens", "scores", "settings", "damage", "trained")
SHOWN = 150  # characters of an answer in the table


def main() -> None:
    """Run the checks in both trees, and write the table."""
    arguments = parse_arguments()
    seen = []
    with worktree(ROOT, arguments.revision) as other:
        for name in arguments.only or FILES:
            for pair in zip(answers(name, other), answers(name, ROOT), strict=True):
                seen.append(pair)
                print_rank0(
                    " ".join(f"{pair[0]['row']:4}{mark(pair[0])} {mark(pair[1])} {pair[0]['what']}".split("\n"))
                )
        revision = git(other, "rev-parse", "HEAD")
    if arguments.out:
        write_result(arguments.out, arguments.revision, revision, sorted(seen, key=place))
        print_rank0(f"wrote {arguments.out}")
    rights = [sum(is_right(pair[side]) for pair in seen) for side in (0, 1)]
    print_json({"checks": len(seen), "right": {arguments.revision: rights[0], "this build": rights[1]}})


def answers(name: str, tree: Path) -> Iterator[dict[str, Any]]:
    """What a file's checks print in a tree. Raises UserError where the file does not run to its end."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"benchmarks/rows/{name}.py in {tree}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"row"'))


def is_right(answer: dict[str, Any]) -> bool:
    """Whether it is the answer that the check wants."""
    return re.search(answer["want"], answer["seen"], re.DOTALL) is not None


def mark(answer: dict[str, Any]) -> str:
    """One word for a reader."""
    return "right" if is_right(answer) else "WRONG"


def place(pair: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """Where a check stands in the table."""
    letter, number = pair[0]["row"][0], pair[0]["row"][1:]
    return letter, int(number or 0)


def cell(answer: dict[str, Any]) -> str:
    """An answer within a cell: the part that matters, on one line."""
    text = " ".join(answer["seen"].split())
    found = re.search(answer["want"], text)
    start = max(0, min(found.end() if found else 0, len(text)) - SHOWN) if len(text) > SHOWN else 0
    text = ("..." if start else "") + text[start : start + SHOWN] + ("..." if len(text) > start + SHOWN else "")
    shown = "".join(char if char.isprintable() else " " for char in text).replace("|", "\\|").replace("<", "&lt;")
    return shown if is_right(answer) else f"**wrong**: {shown}"


def write_result(path: Path, name: str, revision: str, seen: Sequence[Sequence[dict[str, Any]]]) -> None:
    """A dated file: hardware, command, revisions, table."""
    rows = []
    for other, this in seen:
        what = other["what"].replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| {other['row']} | {what} | {cell(other)} | {cell(this)} | {other['tests']} |")
    text = [
        *head(f"Inputs that {name} read wrongly, and what this build makes of them", "benchmarks.rows"),
        f"- The other build: {revision}; the same packages for both",
        "",
        "A: silently wrong; B: tracebacks, aborts, hangs; C: refused without need, or with the wrong reason. Answers are exit statuses and",
        "what was said, or values; the checks stand in `benchmarks/rows`, the tests in `tests/unit` where nothing else is said.",
        "",
        f"| row | check | {name} | this build | tests |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    path.write_text("\n".join(text), encoding="utf8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="commit, branch or tag to compare with")
    parser.add_argument("--only", nargs="+", choices=FILES, metavar="FILE", help=f"some of: {', '.join(FILES)}")
    parser.add_argument("--out", type=result_path, help="Markdown file to write the result to")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
