"""What a run that goes on in another layout takes of memory: at most its own share and the largest weight, for each process.

    python -m benchmarks.reshard [--shape 1b] [--work DIR] [--out benchmarks/results/DATE-reshard.md]

Two CPU processes write a checkpoint of random weights and moments in one layout (DeepSpeed's files, bf16 with fp32 masters); two new
ones make an engine of another layout and load it, as `train.py` does (`load_universal`). Told for each of these:

- share: what its settings let it keep, by arithmetic from shapes: weights of the forward pass, masters, both moments
- gradients: fp32 zeros that DeepSpeed's ZeRO 3 has from the start
- largest weight: in fp32, as it is read
- building, peak, kept: its own pages (RssAnon; those of mapped files are the page cache's) above those before its engine is made: at
  most while the engine is made, at most until the checkpoint is in it, and then. The interpreter, the libraries and an engine of a
  few thousand weights, which was loaded and left before, are taken off and nothing else.

`is_within`: peak <= share + gradients + largest weight. `--shape 1b` (a billion parameters) takes 20 GB of memory and 16 GB of disk at
DIR, one checkpoint at a time, and status 1 says that a process took more. `toy` (38 million, a GB) shows that the command works:
there a run of 16 M numbers is larger than any weight. The last line is one JSON object.
"""

import argparse
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.result_file import head, result_path
from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from tests.distributed.reshard_memory import SMALL, Memory, Shape, go_on, gradients, save, share
from ttt_dist.checkpoint.restore import checkpoint_bytes
from ttt_dist.config.model import ModelConfig
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

SHAPES = {
    "toy": Shape(ModelConfig(hidden_size=512, num_layers=4, num_heads=8, num_kv_heads=8, ffn_hidden_size=2048), 20_480),
    "1b": Shape(
        ModelConfig(hidden_size=2048, num_layers=18, num_heads=16, num_kv_heads=8, ffn_hidden_size=5632), 40_960
    ),
}
LAYOUTS = {  # at ZeRO 1 DeepSpeed has gradients from the start, which are no part of the question
    "ZeRO 3": Layout(zero=3, micro=2, dp=2, precision="bf16"),
    "ZeRO 2": Layout(zero=2, micro=2, dp=2, precision="bf16"),
    "tensor 2": Layout(zero=2, micro=2, tensor=2, precision="bf16"),
}
CASES = {"ZeRO 3": ["tensor 2", "ZeRO 2"], "tensor 2": ["ZeRO 3", "ZeRO 2"]}
SIZES = ("share", "gradients", "largest_weight", "building", "peak", "kept")
TIMEOUT_S = 3600
Row = dict[str, Any]


def write(shape: Shape, source: str, work: Path) -> Path:
    """A folder with the checkpoints of a layout, that of the model and a small one. Raises UserError where the disk is too small."""
    split, folder = LAYOUTS[source], work / source
    needed, free = checkpoint_bytes(shape.config(split), shape.layout), shutil.disk_usage(work).free
    if free < needed:
        raise UserError(
            f"{work}: a checkpoint takes {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; free some, or name another by --work"
        )
    run_distributed([(save, (split, {folder / "large": shape, folder / "small": SMALL}))], 2, TIMEOUT_S)
    return folder


def require_memory(shape: Shape) -> None:
    """Raise UserError where two processes of any of the layouts would not fit."""
    needed = 2 * max(share(shape, to) + gradients(shape, to) + shape.largest_weight for to in LAYOUTS.values())
    pages = Path("/proc/meminfo").read_text(encoding="utf8").splitlines()
    free = next(1024 * int(line.split()[1]) for line in pages if line.startswith("MemAvailable"))
    if free < needed:
        raise UserError(
            f"two processes take {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free; choose --shape toy"
        )


def read(shape: Shape, target: str, folder: Path) -> list[Memory]:
    """What each process of another layout takes, in processes that have done nothing before."""
    return run_distributed([(go_on, (LAYOUTS[target], shape, folder / "large", folder / "small"))], 2, TIMEOUT_S)[0]


def rows(shape: Shape, source: str, target: str, found: list[Memory]) -> list[Row]:
    """A row for each process, in MB."""
    own, zeros = share(shape, LAYOUTS[target]), gradients(shape, LAYOUTS[target])
    known = {"share": own / 1e6, "gradients": zeros / 1e6, "largest_weight": shape.largest_weight / 1e6}
    return [
        {"from": source, "to": target, "rank": rank}
        | known
        | {name: value / 1e6 for name, value in asdict(memory).items()}
        | {"is_within": memory.peak <= own + zeros + shape.largest_weight}
        for rank, memory in enumerate(found)
    ]


def report(shape: Shape, found: list[Row]) -> list[str]:
    """The result file."""
    text = head("Memory of going on in another layout", "benchmarks.reshard")
    text += [
        f"- {shape.num_parameters:,} parameters, bf16 with fp32 masters, two processes; MB of each process's own pages above those before",
        "",
        "| checkpoint | read into | rank | share | gradients | largest weight | building | peak | peak / allowed | kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        part = row["peak"] / (row["share"] + row["gradients"] + row["largest_weight"])
        sizes = [f"{row[name]:,.0f}" for name in SIZES]
        cells = [row["from"], row["to"], str(row["rank"]), *sizes[:-1], f"{part:.3f}", sizes[-1]]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, ""]


def main() -> None:
    """Measure all cases, tell, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="size of the model (default 1b)")
    parser.add_argument(
        "--work", type=Path, help="folder on the disk for checkpoints (default: that of temporary files)"
    )
    parser.add_argument("--out", type=result_path, help="Markdown file to write the result to")
    args = parser.parse_args()
    shape, found = SHAPES[args.shape], []
    require_memory(shape)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work, prefix="reshard-") as work:
        for source, targets in CASES.items():
            folder = write(shape, source, Path(work))
            for target in targets:
                found += rows(shape, source, target, read(shape, target, folder))
                for row in found[-2:]:
                    told = ", ".join(f"{name} {row[name]:,.0f}" for name in SIZES)
                    print_rank0(f"{source} -> {target}, rank {row['rank']}: {told} MB")
            shutil.rmtree(folder)
    if args.out:
        args.out.write_text("\n".join(report(shape, found)), encoding="utf8")
    print_json({"parameters": shape.num_parameters, "unit": "MB", "processes": found})
    over = sum(not row["is_within"] for row in found)
    if over:
        raise UserError(
            f"{over} of {len(found)} processes took more than share, gradients and largest weight; see above"
        )


if __name__ == "__main__":
    run_command(main)
