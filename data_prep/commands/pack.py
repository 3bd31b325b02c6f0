"""`data_prep pack`: composed samples into packs of seq_len tokens, as one shard or a set of shards in Megatron's format.

All samples stand in one random order, which is cut into windows of 100,000; a window is packed by itself, and a shard
is so many windows. In memory are the tokens of one window; the lengths of all samples (4 bytes each) are a file that is
mapped. The shards depend on the samples and the seed, on nothing else.
"""

import argparse
from pathlib import Path
from typing import Any

from data_prep.commands.flags import add_max_errors
from data_prep.jobs.pack import PackJob, finish
from data_prep.packing.sample_source import SampleSource
from ttt_dist.jobs.parts import find_parts
from ttt_dist.jobs.runner import add_arguments, run_parts, task_shard_of, tell
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

SHARD_SAMPLES = 1_000_000

EXAMPLES = """examples:
  python -m data_prep pack --samples samples/train --seq-len 4096 --out shards/train
  python -m data_prep pack --samples samples/books --seq-len 2048 --too-long cut --out shards/books
  python -m data_prep pack --samples samples/train --seq-len 4096 --array-index $SLURM_ARRAY_TASK_ID --array-size 8 --out shards/train
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the argument parser of data_prep."""
    parser = subparsers.add_parser(
        "pack",
        help="pack samples into shards",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=Path, required=True, help="folder that data_prep compose or import wrote")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens per pack")
    parser.add_argument("--seed", type=int, default=0, help="of the order of samples (default 0)")
    parser.add_argument(
        "--too-long",
        choices=("drop", "cut", "fail"),
        default="drop",
        help="samples longer than seq-len: leave them out, cut them at a span's border, or write nothing (default drop)",
    )
    add_max_errors(parser, "dropped samples")
    parser.add_argument(
        "--shard-samples",
        type=int,
        default=SHARD_SAMPLES,
        help=f"samples of a shard, about (default {SHARD_SAMPLES:,})",
    )
    parser.add_argument("--out", type=Path, required=True, help="prefix of the shard: PREFIX.bin, .idx, .json")
    add_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """The command. Raises UserError where more samples than --max-errors were too long; the shards are there even so."""
    for name in ("seq_len", "shard_samples"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be 1 or more")
    shard = task_shard_of(args)
    source = SampleSource(find_parts(args.samples, "compose"))
    source.require_alike()
    job = PackJob(
        source=source,
        samples=args.samples,
        out=args.out,
        seq_len=args.seq_len,
        seed=args.seed,
        policy=args.too_long,
        shard_samples=args.shard_samples,
    )
    try:
        job.plan()
        job.refuse_too_long()
        totals = run_parts(job, shard, Problems())
        finish(job)
    finally:
        source.forget()
    counts = {name: int(totals.counts.get(name, 0)) for name in ("packs", "samples", "tokens")}
    fill = counts["tokens"] / max(counts["packs"] * args.seq_len, 1)
    what = f"{counts['packs']:,} packs of {args.seq_len}, {counts['samples']:,} samples, fill {fill:.2%}"
    tell(args.out, totals, what, shard, job.num_parts)
    dropped = job.too_long["dropped"]
    if dropped > args.max_errors:
        raise UserError(
            f"{args.out}: {dropped} samples exceed --seq-len {args.seq_len} and were dropped (--max-errors "
            f"{args.max_errors}); the others are packed: raise --seq-len or --max-errors"
        )
