"""`python -m data_prep COMMAND ...`: each command is one step of the data's way, in a module of its own.

A module has `add_parser(subparsers)`, which sets `func` to the step's function of the parsed arguments. Only the
module of the command that was asked for is imported: torch and megatron-core take seconds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ttt_dist.util.console import run_command

COMMANDS = {
    "readers": ("readers", "list the corpora that can be read, and what each reader wants"),
    "manifest": ("manifest", "list a corpus as JSONL, one utterance per line"),
    "filter": ("filter", "keep the lines of a manifest that rules allow"),
    "utterances": ("utterances", "join single recordings into random strings of words"),
    "group": ("group", "join consecutive utterances into documents"),
    "encode": ("encode", "turn the manifest's audio into codes (and learn the built-in codec)"),
    "compose": ("compose", "turn codes and texts into samples, by templates"),
    "import": ("import_text", "turn chats and documents that are text already into samples"),
    "pack": ("pack", "pack samples into shards of fixed length"),
    "verify": ("inspect_shards", "check shards against their checksums and layout"),
    "stats": ("inspect_shards", "count what shards or a manifest hold"),
    "show": ("inspect_shards", "print a pack readably and draw its visibility mask"),
    "run": ("run", "make the shards of a recipe: all these steps, those that are not done"),
}

EXAMPLES = """examples, in the order of the data's way:
  python -m data_prep manifest --reader pattern --pattern '{text}_{speaker}_{index}.flac' --source demo_speech \\
      --out work/train.jsonl --holdout-every 10 --holdout-field index --holdout-out work/valid.jsonl
  python -m data_prep utterances --manifest work/train.jsonl --out work/train-strings.jsonl --count 20000
  python -m data_prep encode --manifest work/train-strings.jsonl --codec melvq --train-codec \\
      --audio-root demo_speech --out work/codes
  python -m data_prep compose --help        (and so on: every command has its own examples)
"""


def build_parser(
    command: str | None, kind: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """The parser with the arguments of `command`; of the other commands it has names and help only."""
    parser = kind(
        prog="ttt-prep" if Path(sys.argv[0]).name == "ttt-prep" else "python -m data_prep",
        description=__doc__.partition("\n\n")[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = COMMANDS[command][0] if command in COMMANDS else None
    for name, (module, help_line) in COMMANDS.items():
        if module != wanted:
            subparsers.add_parser(name, help=help_line)
    if wanted:
        importlib.import_module(f"data_prep.commands.{wanted}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; UserError where it could not do what was asked."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if not word.startswith("-")), None)
    parser = build_parser(command)
    parsed, others = parser.parse_known_args(arguments)
    if others and not (hasattr(parsed, "overrides") and all("=" in word for word in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # argparse takes settings only before the options
        parsed.overrides += others
    status = parsed.func(parsed)
    if status:
        sys.exit(status)


def command() -> None:
    """The entry point `ttt-prep`."""
    run_command(main)


if __name__ == "__main__":
    command()
