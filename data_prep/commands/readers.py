"""`data_prep readers`: what corpora can be listed, what each reader wants as --source, and which flags it takes."""

from __future__ import annotations

import argparse
from typing import Any

from data_prep.readers import READERS
from ttt_dist.util.console import print_rank0


def run(args: argparse.Namespace) -> None:
    """Print a line per reader, and one of the flags that it takes beside --source, --lang and --out."""
    width = max(map(len, READERS))
    for name, row in READERS.items():
        print_rank0(f"{name:<{width}}  {row.help}")
        if row.takes:
            print_rank0(f"{'':<{width}}  takes {', '.join('--' + flag.replace('_', '-') for flag in row.takes)}")


def add_parser(subparsers: Any) -> None:
    """Add the command `readers`."""
    parser = subparsers.add_parser(
        "readers",
        help="list the corpora that can be read, and what each reader wants",
        description="List the readers of `manifest --reader`, what each wants as --source, and the flags that it takes.",
    )
    parser.set_defaults(func=run)
