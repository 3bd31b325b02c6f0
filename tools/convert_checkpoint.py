"""Published models to model folders for training, checkpoints to other layouts, and both to what `transformers` loads.

    python tools/convert_checkpoint.py import-hf --source Qwen2.5-0.5B --out models/qwen2.5-0.5b --layout released
    python tools/convert_checkpoint.py import-hf --source Llama-3.2-1B --out models/llama --codebook 4096 --seed 1
    python tools/convert_checkpoint.py inspect   --source runs/mine
    python tools/convert_checkpoint.py reshard   --source runs/mine/checkpoints/step-00000200 --out out/step-200
    python tools/convert_checkpoint.py export-hf --source runs/mine/export --out out/hf --dtype bf16 --max-shard-size 2GB
    python tools/convert_checkpoint.py export-hf --source runs/mine --out out/hf --dtype bf16

`--source` is a folder on this machine: for import-hf one with config.json and safetensors; else a checkpoint in either form, a
run folder (its newest complete checkpoint), or, but for reshard, a model folder. What reshard writes is read by train.py
--resume, whatever the layout of its processes. Tensors pass through in pieces: no command ever holds a whole model. `--out` is
complete or absent; one that exists is never touched.
"""

import argparse
import os
import re
from pathlib import Path

from ttt_dist.model.hf.families import CONFIG, MAX_SHARD_BYTES
from ttt_dist.util.console import print_rank0, run_command
from ttt_dist.util.errors import UserError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
DTYPES = ("bf16", "fp32", "keep")


def main() -> None:
    """Run one conversion and say what came out."""
    args = parse_arguments()
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks at its import, which is with the first of its files
    if args.command == "inspect":
        inspect(args.source)
        return
    import torch  # seconds, as what follows: --help does not wait for it

    from ttt_dist.checkpoint.conversion import export_checkpoint, reshard
    from ttt_dist.checkpoint.saved_state import EMA, WEIGHTS
    from ttt_dist.model.hf.published import export_hf, import_hf, require_new

    if args.command == "import-hf":
        print_rank0(import_hf(args.source, args.out, args.tokenizer, args.codebook, args.seed, args.max_shard_size))
        return
    require_new(args.out)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}.get(getattr(args, "dtype", "keep"))
    if args.command == "reshard":
        print_rank0(reshard(args.source, args.out, args.max_shard_size))
    elif (args.source / CONFIG).is_file():
        if getattr(args, "ema", False):
            raise UserError(
                f"--ema {args.source}: a model has one set of weights; name a checkpoint of a run with train.ema"
            )
        print_rank0(export_hf(args.source, args.out, dtype, args.max_shard_size))
    else:
        dtype = dtype or torch.float32  # which training goes on from; evaluations of a checkpoint take the run's type
        kind = EMA if args.ema else WEIGHTS
        print_rank0(export_checkpoint(args.source, args.out, dtype, args.max_shard_size, args.tokenizer, kind=kind))


def inspect(source: Path) -> None:
    """Print what a folder holds. Raises UserError where it is not whole."""
    from ttt_dist.checkpoint.inspection import inspect_folder

    lines, failure = inspect_folder(source)
    for line in lines:
        print_rank0(line)
    if failure is not None:
        raise failure


def shard_size(text: str) -> int:
    """Bytes of a size such as 5GB or 500MB (powers of ten)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size such as 5GB or 500MB")
    return size


def codebook_size(text: str) -> int:
    """A number of codes, at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number of codes, such as 16384")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    added = {
        name: commands.add_parser(
            name, help=text, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, text in (
            ("import-hf", "a published model, for train.init_from"),
            ("export-hf", "a model folder or a checkpoint, for transformers"),
            ("reshard", "a checkpoint, for another layout of processes"),
            ("inspect", "what a checkpoint or a model folder holds"),
        )
    }
    for name, command in added.items():
        command.add_argument("--source", required=True, type=Path, help="folder to read")
        if name != "inspect":
            command.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
            command.add_argument(
                "--max-shard-size", type=shard_size, default=MAX_SHARD_BYTES, help="of a file of weights (default 5GB)"
            )
    export, imported = added["export-hf"], added["import-hf"]
    export.add_argument(
        "--dtype", choices=DTYPES, default="keep", help="of the weights (default: as they are; checkpoints have fp32)"
    )
    export.add_argument(
        "--ema", action="store_true", help="of a checkpoint: the moving average of its weights (train.ema)"
    )
    export.add_argument("--tokenizer", type=Path, help="of a checkpoint (default: beside the shards of its run)")
    imported.add_argument("--tokenizer", type=Path, help="the model's text tokenizer (default: in --source)")
    layout = imported.add_mutually_exclusive_group(required=True)
    layout.add_argument("--layout", choices=["released"], help="the released TtT vocabulary, on Qwen2.5's")
    layout.add_argument("--codebook", type=codebook_size, help="extend the tokenizer by this many codes")
    imported.add_argument("--seed", type=int, default=0, help="of the rows that are drawn (default 0)")
    return parser.parse_args()


def command() -> None:
    """The entry point `ttt-convert`."""
    run_command(main)


if __name__ == "__main__":
    command()
