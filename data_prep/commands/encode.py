"""`data_prep encode`: the audio of a manifest becomes discrete codes (what it writes: data_prep/jobs/encode.py)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.commands.flags import add_max_errors, add_part_size
from data_prep.jobs.encode import EncodeJob
from data_prep.jobs.from_codes import FromCodesJob
from data_prep.train_codec_tokenizer import learn_codec
from ttt_dist.audio.registry import CODECS
from ttt_dist.jobs.parts import cut_lines, remove_part, require_no_others
from ttt_dist.jobs.runner import add_arguments, run_parts, task_shard_of, tell, tell_notes
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

EXAMPLES = """examples:
  # learn the built-in codec from the corpus, then encode the corpus with it
  python -m data_prep encode --manifest work/train.jsonl --codec melvq --train-codec --frame-rate 25 \\
      --codebook-size 512 --sample-rate 8000 --audio-root recordings --codec-out work/codec --out work/codes-train
  # encode other speech with the same codec
  python -m data_prep encode --manifest work/valid.jsonl --audio-root recordings \\
      --codec melvq:work/codec --out work/codes-valid
  # a published codec, as one of 64 array tasks with four processes each
  python -m data_prep encode --manifest train.jsonl --audio-root /corpora --codec glm4voice:/models/glm-4-voice-tokenizer \\
      --array-index $SLURM_ARRAY_TASK_ID --array-size 64 --workers 4 --out codes
  mpirun -n 16 python -m data_prep encode ...
  # codes that were computed elsewhere: a file per utterance, or lines `ID CODE CODE ...`; no audio is read
  python -m data_prep encode --manifest train.jsonl --from-codes mimi_codes/ --codec mimi:/models/mimi --codebooks 8 --out codes

Unreadable audio and bad lines are reported and left out, the rest is encoded. With more bad ones than --max-errors
the exit status is 1. A part that is complete is not made again.
"""


def run(args: argparse.Namespace) -> None:
    """Learn the codec where asked to, then encode this task's parts."""
    shard = task_shard_of(args)
    spec = args.codec
    if args.train_codec and args.from_codes:
        args.fail("--from-codes: name the codec that made the codes; --train-codec would learn another one")
    if args.train_codec:
        learnable = [name for name, row in CODECS.items() if row.is_learnt]
        if args.codec not in learnable:
            names = " or ".join(learnable)
            args.fail(f"--train-codec: only the built-in codec can be learnt; write --codec {names}, not {args.codec}")
        spec = f"{args.codec}:{_learnt(args)}"
    problems = Problems(args.max_errors)
    ranges = cut_lines(args.manifest, args.part_size)
    require_no_others(args.out, len(ranges))
    settings = {
        "ranges": ranges,
        "codec": spec,
        "codebooks": args.codebooks,
        "dtype": args.codec_dtype,
        "out": args.out,
    }
    settings |= {"audio_root": args.audio_root, "retry": args.retry}
    job = EncodeJob(**settings) if args.from_codes is None else FromCodesJob(**settings, codes=args.from_codes)
    totals = run_parts(job, shard, problems)
    counts = totals.counts
    num_utterances = int(counts.get("utterances", 0))
    if totals.parts and not num_utterances:
        for number in shard.of(job.num_parts):
            remove_part(job.prefix(number))
        raise UserError(f"{args.manifest}: none of its utterances could be encoded ({problems.count} bad)")
    hours, codes = counts.get("seconds", 0) / 3600, int(counts.get("codes", 0))
    tell(args.out, totals, f"{num_utterances:,} utterances, {hours:.2f} hours, {codes:,} codes", shard, job.num_parts)
    tell_notes(args.out, totals)
    problems.raise_if_over_limit(f"the other {num_utterances:,} utterances were encoded")


def _learnt(args: argparse.Namespace) -> Path:
    """The folder of the codec, learnt now unless it was before."""
    import torch

    torch.set_num_threads(1)  # the result depends on the number of threads
    folder: Path = args.codec_out or args.out / "codec"
    settings = {name: getattr(args, name) for name in ("sample_rate", "frame_rate", "codebook_size", "seed")}
    learn_codec(args.manifest, settings, folder, args.audio_root)
    return folder


def add_parser(subparsers: Any) -> None:
    """Add the command `encode`."""
    parser = subparsers.add_parser(
        "encode",
        help="turn the manifest's audio into codes (and learn the built-in codec)",
        description="Turn the audio of a manifest into discrete codes.",
        epilog=EXAMPLES + "\ncodecs:\n" + "\n".join(f"  {name:<15} {row.help}" for name, row in CODECS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--manifest", required=True, type=Path, help="manifest to encode")
    parser.add_argument(
        "--codec",
        required=True,
        help="NAME:FOLDER of a codec below, package.module:Class[:FOLDER] or command:PROGRAM of your own, or melvq with --train-codec",
    )
    parser.add_argument("--codebooks", type=int, metavar="K", help="of a codec of several codebooks, use the first K")
    parser.add_argument(
        "--codec-dtype",
        choices=["float32", "bfloat16"],
        help="precision of a codec that has a choice: of glm4voice's layers (default: bfloat16 on CUDA, else float32)",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the codes")
    parser.add_argument(
        "--from-codes",
        type=Path,
        metavar="PATH",
        help="take codes of --codec computed elsewhere: folder of ID.npy, .npz, .pt or .json; one .npz, .pt or .jsonl; lines ID CODE ...",
    )
    parser.add_argument("--audio-root", type=Path, help="folder that all audio lies in (default: the manifest's)")
    add_part_size(parser)
    add_max_errors(parser, "bad lines or files")
    parser.add_argument("--retry", action="store_true", help="make parts again in which something could not be read")
    add_arguments(parser)
    learning = parser.add_argument_group("learning melvq")
    learning.add_argument("--train-codec", action="store_true", help="learn the codec from this manifest first")
    learning.add_argument("--codec-out", type=Path, help="where to save it (default: OUT/codec)")
    learning.add_argument("--sample-rate", type=int, default=16000, help="Hz (default 16000)")
    learning.add_argument("--frame-rate", type=float, default=25.0, help="codes per second (default 25)")
    learning.add_argument("--codebook-size", type=int, default=512, help="codes (default 512)")
    learning.add_argument("--seed", type=int, default=0, help="of the codebook (default 0)")
    parser.set_defaults(func=run, fail=parser.error)
