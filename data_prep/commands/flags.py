"""Flags that several commands have; those of sharing the work are `ttt_dist.jobs.runner.add_arguments`."""

import argparse
from collections.abc import Callable

PART_SIZE = 8192  # lines: some hours of speech


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that is a whole number from `least` on."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number}: at least {least} is needed")
        return number

    return whole_number


def add_max_errors(parser: argparse.ArgumentParser, of: str = "bad lines") -> None:
    """`--max-errors N`: how many of what is reported and left out do not fail the command."""
    parser.add_argument("--max-errors", type=at_least(0), default=0, metavar="N", help=f"{of} allowed (default 0)")


def add_part_size(parser: argparse.ArgumentParser) -> None:
    """`--part-size N`: lines of a manifest that are one unit of work."""
    parser.add_argument(
        "--part-size", type=at_least(1), default=PART_SIZE, metavar="N", help=f"lines of a part (default {PART_SIZE})"
    )
