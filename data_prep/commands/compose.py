"""`data_prep compose`: audio codes and texts to samples, through the templates.

Every part of codes/ becomes a part of the same name in samples/, one document per sample; tokenizer, codec and template
settings go beside them. A part that is there already and was made from the same input is kept.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.commands.flags import add_max_errors
from data_prep.jobs.compose import CodesPart, ComposeJob
from data_prep.token_layout_args import add_layout_argument
from data_prep.train_codec_tokenizer import learn_tokenizer
from ttt_dist.jobs.parts import find_parts, require_no_others
from ttt_dist.jobs.runner import add_arguments, run_parts, task_shard_of, tell
from ttt_dist.manifest.problems import Problems
from ttt_dist.sequence.templates import TemplateSettings, load_template_settings
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  python -m data_prep compose --codes codes/train --template asr,tts --tokenizer Qwen2.5/ --out samples/train
  python -m data_prep compose --codes codes/train --template asr --train-tokenizer --vocab-size 400 --out samples/train
  python -m data_prep compose --codes codes/test --template asr --tokenizer samples/train/tokenizer --out samples/test
  python -m data_prep compose --codes codes/emotion --template emotion --settings my-templates.yaml \\
      --tokenizer Qwen2.5/ --array-index $SLURM_ARRAY_TASK_ID --array-size 16 --out samples/emotion
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "compose",
        help="make samples of codes and texts",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--codes", type=Path, required=True, help="folder that data_prep encode wrote")
    parser.add_argument("--template", type=template_names, required=True, help="one or more, such as asr,tts")
    parser.add_argument("--settings", type=Path, help="YAML with prompts, ratios and templates of your own")
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json, or a sentencepiece model")
    tokenizer.add_argument("--train-tokenizer", action="store_true", help="train a sentencepiece model on the texts")
    parser.add_argument("--vocab-size", type=int, default=400, help="entries to train, at most (default 400)")
    parser.add_argument("--tokenizer-out", type=Path, help="folder for the trained model (default OUT/tokenizer)")
    add_layout_argument(parser)
    add_template_arguments(parser)
    parser.add_argument("--name-speaker", action="store_true", help="name the speaker in tts prompts")
    parser.add_argument("--deduplicate", action="store_true", help="of entries with the same audio keep the first")
    add_max_errors(parser, "bad utterances")
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    add_arguments(parser)
    parser.set_defaults(func=run)


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    """The ratios, which most runs set by hand."""
    parser.add_argument("--text-ratio", type=int, help="text tokens between two spans (default 13)")
    parser.add_argument("--audio-ratio", type=int, help="codes in each span but the last (default 26)")


def template_names(text: str) -> tuple[str, ...]:
    """Parse `asr,tts`."""
    return tuple(dict.fromkeys(text.split(",")))


def settings_of(args: argparse.Namespace) -> TemplateSettings:
    """The template settings of the command line: the YAML's, or the defaults, with the flags put in."""
    settings = load_template_settings(args.settings) if args.settings else TemplateSettings()
    flags = {name: getattr(args, name, None) for name in ("text_ratio", "audio_ratio", "name_speaker")}
    settings = replace(settings, **{name: value for name, value in flags.items() if value})
    for name in ("text_ratio", "audio_ratio"):
        if getattr(settings, name) < 1 or getattr(args, name) == 0:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more")
    return settings


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more utterances than --max-errors could not be used; the others are kept."""
    shard = task_shard_of(args)
    parts = [CodesPart(*found) for found in find_parts(args.codes, "encode")]
    require_no_others(args.out, len(parts))
    settings = settings_of(args)
    for name in args.template:
        settings.require(name)
    tokenizer = args.tokenizer
    if args.train_tokenizer:
        tokenizer = args.tokenizer_out or args.out / "tokenizer"
        learn_tokenizer(parts, settings, args.template, args.vocab_size, tokenizer)
    problems = Problems(args.max_errors)
    job = ComposeJob(
        parts=parts,
        names=args.template,
        settings=settings,
        tokenizer=tokenizer,
        codec=args.codes / "codec",
        out=args.out,
        deduplicate=args.deduplicate,
        layout=args.layout,
    )
    totals = run_parts(job, shard, problems)
    counts = {name: int(totals.counts.get(name, 0)) for name in ("samples", "tokens", "audio_tokens", "copies")}
    what = f"{counts['samples']:,} samples, {counts['tokens']:,} tokens, {counts['audio_tokens']:,} of them audio"
    copies = f"; {counts['copies']:,} copies of earlier recordings were left out" if args.deduplicate else ""
    tell(args.out, totals, what + copies, shard, job.num_parts)
    if problems.count > args.max_errors:
        raise UserError(
            f"{args.out}: {problems.count} utterances could not be composed (--max-errors {args.max_errors}); "
            "the others are there: mend the lines named above, or raise --max-errors"
        )
