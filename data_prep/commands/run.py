"""`data_prep run`: makes the shards that a recipe's section `corpora` describes, step by step; what is done is not done again."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from data_prep.recipe_steps import Step, plan_steps
from data_prep.step_notes import is_done, was_done, write_note
from ttt_dist.jobs.commands import command_line, run_python
from ttt_dist.launch.launchers import detect_task
from ttt_dist.util.console import print_rank0
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import require_lease

EXAMPLES = """examples:
  python -m data_prep run recipes/libritts.yaml corpora.folders.corpus=/corpora/LibriTTS \\
      corpora.codec=glm4voice:/models/glm-4-voice-tokenizer corpora.tokenizer=/models/Qwen2.5-1.5B --workers 4
  python -m data_prep run recipes/libritts.yaml corpora.folders.corpus=LibriTTS --list      (each step's command)

A step is an ordinary command, printed before it runs. Interrupted, the same line goes on where it was. A setting that changes
makes its steps run again; what they have made of others they make anew or refuse, as they do by hand.
"""
PARALLEL = ("encode", "compose", "import", "pack")


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with a step's flags as the recipe's mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def require_flags(steps: Sequence[Step]) -> None:
    """Raise UserError that names the first step whose command would not take its flags: before hours of work, not behind them."""
    from data_prep.__main__ import build_parser

    for step in steps:
        try:
            build_parser(step.command, _Parser).parse_args(step.words())
        except UserError as error:
            raise UserError(f"{step.key}: {error}; see python -m data_prep {step.command} --help") from None


def run_steps(steps: Sequence[Step], out: Path, run: Callable[[Sequence[object]], None] = run_python) -> int:
    """Run the steps that are not done, in their order; how many there were. Raises UserError where one fails.

    Notes on them go to `out`/steps.
    """
    require_flags(steps)
    notes, num_run = out / "steps", 0
    out.mkdir(parents=True, exist_ok=True)
    with require_lease(notes):
        for number, step in enumerate(steps, start=1):
            if is_done(step, notes):
                print_rank0(f"[{number}/{len(steps)}] {step.name}: {step.out} is there")
                continue
            print_rank0(f"[{number}/{len(steps)}] {step.name}:")
            try:
                run(["-m", "data_prep", *step.words()])
            except UserError as error:
                raise UserError(f"{step.key}: {error}{_remedy(step, notes, out)}") from None
            write_note(step, notes)
            num_run += 1
    return num_run


def _remedy(step: Step, notes: Path, out: Path) -> str:
    """What helps where a step will not make anew what it has made of something else."""
    if not was_done(step, notes):
        return ""
    return (
        f"; what it works on, or its settings, have changed since {step.out} was made: choose another corpora.out, or "
        f"remove {out} to make all anew"
    )


def main(args: argparse.Namespace) -> None:
    """The command."""
    from ttt_dist.config.loader import read_config

    if detect_task(os.environ).size != 1:
        raise UserError(
            "run: is one process; --list prints its steps, of which encode, compose, import and pack are array jobs"
        )
    corpora = read_config(args.recipe, args.overrides).corpora
    if not corpora.sets:
        raise UserError(f"{args.recipe}: has no corpora.sets; recipes with `prep` alone are for tools/pipeline.py")
    steps = plan_steps(corpora)
    if args.workers:
        steps = [_with_workers(step, args.workers) for step in steps]
    out = Path(corpora.out)
    if args.list:
        require_flags(steps)
        for step in steps:
            told = "there" if is_done(step, out / "steps") else "to do"
            print_rank0(f"# {step.name}: {told}\n{command_line(['-m', 'data_prep', *step.words()])}")
        return
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # the step under way ends with this process
    num_run = run_steps(steps, out)
    print_rank0(f"{out}: {len(steps)} steps, {len(steps) - num_run} of them were done before")


def _with_workers(step: Step, workers: int) -> Step:
    return replace(step, flags={"workers": workers, **step.flags}) if step.command in PARALLEL else step


def add_parser(subparsers: Any) -> None:
    """Add the command `run`."""
    parser = subparsers.add_parser(
        "run",
        help="make the shards of a recipe",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML with a section corpora: recipes/libritts.yaml, ...")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument("--list", action="store_true", help="print the commands, and which are done; run nothing")
    parser.add_argument("--workers", type=int, help="processes of each step that can have several")
    parser.set_defaults(func=main)
