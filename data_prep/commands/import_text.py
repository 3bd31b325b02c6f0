"""`data_prep import`: samples that exist as text already: chats and documents, with or without `<|audio_N|>` codes in them.

The sources are JSONL, JSON or Parquet files of `messages` or `text` (the released format). JSONL is cut into parts of so
many lines, every other file is one part. The result is what compose writes, and is packed in the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.assets import keep_codec
from data_prep.commands.flags import add_max_errors, add_part_size
from data_prep.jobs.import_text import ImportJob
from data_prep.token_layout_args import add_layout_argument
from ttt_dist.jobs.parts import LineRange, cut_lines, require_no_others
from ttt_dist.jobs.runner import add_arguments, run_parts, task_shard_of, tell
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import suffix_of
from ttt_dist.sequence.templates import TemplateSettings, load_template_settings

EXAMPLES = """examples:
  # the authors' data, for their checkpoints
  python -m data_prep import --source data/*.parquet --tokenizer Qwen2.5/ --layout released \\
      --codec glm4voice:/models/glm-4-voice-tokenizer --out samples/released
  # text chats beside speech: the codec says how many audio codes the vocabulary has
  python -m data_prep import --source chats.jsonl --tokenizer Qwen2.5/ --codec codes/train/codec --out samples/chats
"""


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more records than --max-errors could not be used; the others are kept."""
    shard = task_shard_of(args)
    pieces: list[LineRange | Path] = []
    for source in args.source:
        pieces += cut_lines(source, args.part_size) if suffix_of(source) == ".jsonl" else [source]
    require_no_others(args.out, len(pieces))
    settings = load_template_settings(args.settings) if args.settings else TemplateSettings()
    num_codes = args.num_codes or _keep(args.codec, args.out)
    job = ImportJob(
        pieces=pieces,
        tokenizer=args.tokenizer,
        settings=settings,
        num_codes=num_codes,
        layout=args.layout,
        out=args.out,
    )
    problems = Problems(args.max_errors)
    totals = run_parts(job, shard, problems)
    counts = {name: int(totals.counts.get(name, 0)) for name in ("samples", "tokens", "audio_tokens")}
    what = f"{counts['samples']:,} samples, {counts['tokens']:,} tokens, {counts['audio_tokens']:,} of them audio"
    tell(args.out, totals, what, shard, job.num_parts)
    problems.raise_if_over_limit(f"the other {counts['samples']:,} samples are there")


def _keep(codec: str, out: Path) -> int:
    """Put the codec beside the samples; the size of its codebook."""
    from ttt_dist.audio import load_codec

    loaded = load_codec(codec)
    keep_codec(loaded, out / "codec")
    return loaded.codebook_size


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "import",
        help="make samples of chats and documents that are text already",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", type=Path, required=True, nargs="+", action="extend", help=".jsonl, .json or .parquet files"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder with tokenizer.json, or a sentencepiece model"
    )
    codes = parser.add_mutually_exclusive_group(required=True)
    codes.add_argument(
        "--codec", help="codec whose codes the vocabulary has: NAME:FOLDER, or a folder that encode wrote"
    )
    codes.add_argument(
        "--num-codes", type=int, help="... or only their number; a model trained on it cannot be exported"
    )
    add_layout_argument(parser)
    parser.add_argument("--settings", type=Path, help="YAML with the chat template (chatml or tokenizer)")
    add_part_size(parser)
    add_max_errors(parser, "bad records")
    parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
    add_arguments(parser)
    parser.set_defaults(func=run)
