"""How long a save keeps training waiting, against the time of writing its bytes once.

    python -m benchmarks.save_stall [--repeat 3] [--out benchmarks/results/DATE-save.md]

A model of 100 M parameters on two CPU processes (ZeRO-1, fp32) saves a checkpoint, as training does: DeepSpeed's files with
their checksums, forced to the disk, manifest, renames. Then one process writes as many bytes to the same disk and forces
them there: the baseline. The last line is one JSON object with `stall_ratio`, the stall over the baseline (medians).
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.result_file import head
from tests.distributed.cases import Layout, new_engine, run_step
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config
from ttt_dist.util.console import main_guard, print_json, print_rank0

SHAPE = ModelConfig(hidden_size=768, num_layers=14, num_heads=12, num_kv_heads=12, ffn_hidden_size=2048)
CHUNK = 64 << 20
Figures = dict[str, Any]


class LargeLayout(Layout):
    """Two data-parallel processes and the large model."""

    def config(self) -> Config:
        config = super().config()
        config.model = SHAPE
        return config


def save_repeatedly(folder: str, repeat: int) -> Figures:
    """Seconds of each save, on this rank, and what was saved; each is followed by the baseline, on rank 0."""
    import torch.distributed as dist

    from ttt_dist.checkpoint import manager

    layout = LargeLayout(zero=1, micro=4, dp=2)
    facts = manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, 2)
    stalls, writes = [], []
    with new_engine(layout) as engine:
        run_step(engine, layout, 0)
        num_parameters = sum(parameter.numel() for parameter in engine.module.parameters())
        for number in range(repeat):
            dist.barrier()
            begin = time.perf_counter()
            path = manager.save(engine, Path(folder), number + 1, facts, {}, CheckpointConfig(keep_last=1))
            dist.barrier()
            stalls.append(time.perf_counter() - begin)
            while any(path.parent.glob(f"{manager.GONE}*")):  # freed beside training: the baseline has the disk alone
                time.sleep(0.01)
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
            if dist.get_rank() == 0:
                writes.append(write_once(Path(folder) / "baseline", num_bytes))
            dist.barrier()
    return {"stalls": stalls, "writes": writes, "bytes": num_bytes, "parameters": num_parameters}


def write_once(path: Path, num_bytes: int) -> float:
    """Seconds for writing so many random bytes and forcing them to the disk."""
    chunk = memoryview(os.urandom(CHUNK))
    begin = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, num_bytes, CHUNK):
            file.write(chunk[: num_bytes - start])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return seconds


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    folder = tempfile.mkdtemp(dir=args.dir)
    try:
        found = run_distributed([(save_repeatedly, (folder, args.repeat))], world_size=2, timeout_s=1200)[0][0]
    finally:
        shutil.rmtree(folder)
    stall, write = statistics.median(found["stalls"]), statistics.median(found["writes"])
    figures = {
        "stall_ratio": round(stall / write, 3),
        "stall_s": round(stall, 2),
        "write_s": round(write, 2),
        "gigabytes": round(found["bytes"] / 1e9, 3),
        "parameters": found["parameters"],
    }
    print_rank0(
        f"stalls {[round(s, 2) for s in found['stalls']]} s, baseline {[round(s, 2) for s in found['writes']]} s"
    )
    if args.out:
        rows = [
            f"- {figures['parameters']:,} parameters, 2 processes, ZeRO-1, fp32: {figures['gigabytes']} GB",
            f"- saves {found['stalls']} s, median {stall:.2f}",
            f"- the same bytes written once and forced to the disk {found['writes']} s, median {write:.2f}",
            f"- stall / baseline: **{figures['stall_ratio']}**",
        ]
        args.out.write_text("\n".join([*head("What a save costs", "benchmarks.save_stall"), "", *rows, ""]))
    print_json(figures)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="saves (default 3)")
    parser.add_argument("--dir", help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--out", type=Path, help="Markdown file to write the result to")
    return parser.parse_args()


if __name__ == "__main__":
    main_guard(main)
