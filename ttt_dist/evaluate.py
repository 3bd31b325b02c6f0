"""Evaluate an exported model: transcripts, speech, answers, captions, classes, chats, or the likelihood of data.

    python ttt_dist/evaluate.py --model runs/demo/export --task asr --data test.jsonl --out results/
    python ttt_dist/evaluate.py --model runs/demo/export --task tts --data test.jsonl --out results/ --limit 50 \\
        --judge model --judge whisper:/models/whisper-large-v3
    python ttt_dist/evaluate.py --model runs/glm/export --task tts --data test.jsonl --out results/ \\
        --decoder-command "python glm_decode.py {codes} {wav}"
    python ttt_dist/evaluate.py --model runs/big/export --task audio_qa --data web_questions.csv --audio-root audios/ \\
        --out results/ --array-index 3 --array-size 16
    python ttt_dist/evaluate.py --model runs/demo/export --task likelihood --data shards/valid --out results/
    mpirun -n 4 python ttt_dist/evaluate.py ...

One JSON line per item goes to OUT/TASK.jsonl, the scores with their intervals to OUT/TASK_summary.json, .md and
TASK.html, and the summary, as the last line, to stdout. Items that cannot be used are named, counted and left out; more
than --max-errors of them: exit status 1. Interrupted, the same command goes on where it was.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.config.objective import Masking
from ttt_dist.evaluation import judge_registry
from ttt_dist.evaluation.args import EvalArgs, is_shards
from ttt_dist.evaluation.metrics.normalise import (
    BY_LANGUAGE,
    FLAG,
    NORMALISERS,
    WHISPER,
    normaliser,
    own_normaliser,
    spelling_file,
)
from ttt_dist.evaluation.tasks.registry import TASK_FLAGS, TASKS, find_task, is_task, tasks_with
from ttt_dist.inference.flags import add_decoding_flags, settings_from_flags
from ttt_dist.jobs import runner
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import split_spec
from ttt_dist.util.similar_paths import remedy_for

# What works with the model is imported where it is used: --help and mistakes of the command line wait for nothing.
if TYPE_CHECKING:
    from ttt_dist.evaluation.items import Item


def main() -> None:
    """Make this process's parts; where all are there, score them and write the results."""
    arguments = parse_arguments()
    from ttt_dist.checkpoint.export import model_folder

    arguments.model = model_folder(arguments.model)
    shard, args = runner.task_shard_of(arguments), args_of(arguments)
    if not args.model.is_dir():
        remedy = remedy_for(args.model, "name the export/ folder of a run, or a checkpoint")
        raise UserError(f"{args.model}: no such model folder; {remedy}")
    from ttt_dist.evaluation.job import EvaluationJob
    from ttt_dist.evaluation.results import write_results

    lines = lines_of(args)
    if not lines:
        raise UserError(f"{args.data}: holds no item; name a data file with at least one line")
    job = EvaluationJob(args, lines, args.fingerprint(), arguments.retry)
    job.require_own_parts()

    start, problems = time.monotonic(), Problems(arguments.max_errors)
    totals = runner.run_parts(job, shard, problems)
    seconds = time.monotonic() - start
    summary = write_results(job)
    runner.tell(
        args.out, totals, f"{int(totals.counts.get('records', 0)):,} records in {seconds:.1f} s", shard, job.num_parts
    )
    if summary is None:
        print_rank0(f"{args.out}: the results follow when all {job.num_parts} parts are there")
        return
    name = args.row.name
    print_rank0(f"{args.out}: scores in {name}_summary.md, the worst items in {name}.html")
    print_json(summary)
    if summary["errors"] > arguments.max_errors or not summary["items"]:
        raise UserError(
            f"{args.data}: {summary['errors']} line(s) could not be used, {summary['items']} were; correct them "
            f"(named above and in {args.parts}), or allow more by --max-errors {summary['errors']}"
        )


def lines_of(args: EvalArgs) -> "list[Item | str]":
    """The items of the data, and messages about those that cannot be used."""
    from ttt_dist.evaluation.items import read_items

    if args.row.packs and is_shards(args.data):
        return args.row.packs(args)
    return read_items(args.data, args.row.prepare, args.limit)


def args_of(arguments: argparse.Namespace) -> EvalArgs:
    """What the command line asks for. Raises UserError where a decoding setting is out of its range."""
    given = {"template", "decoding", "judges"}
    values = {field.name: getattr(arguments, field.name) for field in fields(EvalArgs) if field.name not in given}
    template = arguments.template or find_task(arguments.task).template or ""
    judges = tuple(arguments.judge or [judge_registry.OWN])
    return EvalArgs(template=template, decoding=settings_from_flags(arguments), judges=judges, **values)


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="exported model folder, or a checkpoint of a run")
    parser.add_argument("--task", required=True, help=f"what to measure: {', '.join(TASKS)}, or package.module:NAME")
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="JSONL, JSON, CSV or TSV of items; for likelihood also a prefix of shards",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for results")
    parser.add_argument("--audio-root", type=Path, help="folder that all audio lies in (default: the data file's)")
    parser.add_argument("--template", metavar="NAME", help="template of the prompts (default: the task's own)")
    parser.add_argument(
        "--judge",
        action="append",
        metavar="JUDGE",
        help=f"who transcribes speech, may be given again: {judge_registry.HELP} (model)",
    )
    parser.add_argument(
        "--normaliser",
        help=f"of texts before they are compared: {', '.join((*NORMALISERS, *BY_LANGUAGE))}, {WHISPER}:DIR with its spelling "
        "table, or package.module:function (default: by `lang`)",
    )
    parser.add_argument(
        "--decoder-command",
        metavar="COMMAND",
        help="program that makes the speech of the codes, with {codes} and {wav} in it (docs/codecs.md)",
    )
    parser.add_argument("--text-only", action="store_true", help="audio_qa, speech_chat: answers as text, no speech")
    parser.add_argument(
        "--quality", action="store_true", help="tts: predicted opinions and voice, of the extra `quality` (slow)"
    )
    parser.add_argument(
        "--meteor", action="store_true", help="caption: METEOR too, of the extra `captions`, by Java (English)"
    )
    parser.add_argument(
        "--no-ceiling", dest="ceiling", action="store_false", help="tts: judge own speech alone, and no recordings"
    )
    parser.add_argument("--draws", type=int, default=8, help="likelihood: draws of noise per sample (default 8)")
    parser.add_argument(
        "--estimator",
        choices=get_args(Masking),
        default="exact_count",
        help="likelihood: what is drawn of a bound's noise, a count of masks or each mask (default exact_count)",
    )
    parser.add_argument("--limit", type=int, help="use the first LIMIT items")
    parser.add_argument("--part-size", type=int, default=128, help="items of a part (default 128)")
    parser.add_argument("--batch", type=int, default=32, help="requests decoded side by side, per core (default 32)")
    parser.add_argument("--max-errors", type=int, default=0, help="items that may be unusable (default 0)")
    parser.add_argument("--retry", action="store_true", help="make parts again in which an item could not be used")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled, and of the likelihood's noise")
    runner.add_arguments(parser, ("--share", "--shares"))
    add_decoding_flags(parser)
    arguments = parser.parse_args()
    check(parser, arguments)
    return arguments


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what does not go together. Raises UserError where something of one's own is not there."""
    for name in ("draws", "part_size", "batch", "limit"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.seed < 0:
        parser.error("--seed must be at least 0")
    if not is_task(arguments.task):
        parser.error(f"--task {arguments.task}: choose {', '.join(TASKS)}, or package.module:NAME of your own")
    task = find_task(arguments.task)
    if task.template is None and arguments.template is None and not (task.packs and is_shards(arguments.data)):
        parser.error(f"--task {arguments.task} on items: give --template, which makes samples of them")
    if arguments.decoder_command is not None and not task.speaks:
        speaking = [name for name, task in TASKS.items() if task.speaks]
        parser.error(f"--decoder-command makes speech: it goes with --task {joined(speaking)}")
    if arguments.judge and (not task.is_judged or arguments.text_only):
        judged = [name for name, task in TASKS.items() if task.is_judged]
        parser.error(
            f"{judge_registry.FLAG} transcribes speech: it goes with --task {joined(judged)}, without --text-only"
        )
    for name, flag in TASK_FLAGS.items():
        if getattr(arguments, name) != parser.get_default(name) and name not in task.takes:
            parser.error(f"{flag} goes with --task {joined(tasks_with(name))}")
    asked, _, table = (arguments.normaliser or "").partition(":")
    if asked == WHISPER and table:
        spelling_file(table)
    elif arguments.normaliser in NORMALISERS:
        normaliser(arguments.normaliser)  # which may want a package: to be known before hours of decoding
    elif arguments.normaliser not in (None, *BY_LANGUAGE):
        if split_spec(arguments.normaliser) is None:
            known = ", ".join((*NORMALISERS, *BY_LANGUAGE))
            parser.error(f"{FLAG} {arguments.normaliser}: choose {known}, or package.module:function")
        own_normaliser(arguments.normaliser)


def joined(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def command() -> None:
    """The entry point `ttt-evaluate`."""
    run_command(main)


if __name__ == "__main__":
    command()
