"""How long a save keeps training waiting, against the time of writing its bytes once.

    python -m benchmarks.save_stall [--repeat 3] [--out benchmarks/results/DATE-save.md]

A model of 100 M parameters on two CPU processes (ZeRO-1, fp32) saves a checkpoint, as training does: DeepSpeed's files with
their checksums, forced to the disk, manifest, renames. In turn: a save that training waits for; one beside training
(`checkpoint.async_save`), which counts the call and what the next update waits for the copies; and the baseline, one process
that writes as many bytes to the same disk and forces them there. The last line is one JSON object with `stall_ratio`
(asynchronous) and `sync_stall_ratio`, the stalls over the baseline (medians); `tick_ms` is the longest pause that a loop of
Python on the training's thread has met while a save was written, `idle_tick_ms` without one.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result_file import head, result_path
from tests.distributed.cases import Layout, new_engine, run_step
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config
from ttt_dist.util.console import print_json, print_rank0, run_command

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
    """Seconds of each save, on this rank, and of the baseline, on rank 0."""
    import torch.distributed as dist

    from ttt_dist.checkpoint import manager
    from ttt_dist.checkpoint.async_save import AsyncSaver

    layout, keep = LargeLayout(zero=1, micro=4, dp=2), CheckpointConfig(keep_last=1)
    facts = manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, 2)
    found: Figures = {name: [] for name in ("sync", "async", "writes", "whole", "ticks", "idle_ticks")}

    def settle() -> None:
        while any(Path(folder).glob(f"{manager.GONE}*")):  # freed beside training: who comes next has the disk alone
            time.sleep(0.01)
        dist.barrier()

    with new_engine(layout) as engine:
        saver = AsyncSaver(engine)
        run_step(engine, layout, 0)
        found["parameters"] = sum(parameter.numel() for parameter in engine.module.parameters())
        for number in range(repeat + 1):  # the first makes the buffers
            settle()
            begin = time.perf_counter()
            path = manager.save(engine, Path(folder), 3 * number + 1, facts, {}, keep)
            dist.barrier()
            found["sync"].append(time.perf_counter() - begin)
            settle()
            if dist.get_rank() == 0:
                found["bytes"] = sum(file.stat().st_size for file in path.iterdir())
                found["writes"].append(write_once(Path(folder) / "baseline", found["bytes"]))
            settle()
            begin, saver.waited_s = time.perf_counter(), 0.0
            saver.save(Path(folder), 3 * number + 2, facts, {}, keep)
            call_s = time.perf_counter() - begin
            run_step(engine, layout, number + 1)
            found["async"].append(call_s + saver.waited_s)
            found["whole"].append(saver.wait().seconds)  # type: ignore[union-attr]
            settle()
            found["idle_ticks"].append(longest_tick(for_a_second()))
            saver.save(Path(folder), 3 * number + 3, facts, {}, keep)
            found["ticks"].append(longest_tick(saver._thread.is_alive))  # type: ignore[union-attr]
            saver.wait()
    return {name: values[1:] if isinstance(values, list) else values for name, values in found.items()}


def for_a_second() -> Callable[[], bool]:
    end = time.monotonic() + 1
    return lambda: time.monotonic() < end


def longest_tick(goes_on: Callable[[], bool]) -> float:
    """Milliseconds of the longest of many small pieces of Python's work, one after the other."""
    longest, last = 0.0, time.perf_counter()
    while goes_on():
        sum(range(1000))
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return 1000 * longest


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
    median = {name: statistics.median(values) for name, values in found.items() if isinstance(values, list)}
    figures = {
        "stall_ratio": round(median["async"] / median["writes"], 3),
        "sync_stall_ratio": round(median["sync"] / median["writes"], 3),
        "stall_s": round(median["async"], 3),
        "sync_stall_s": round(median["sync"], 2),
        "write_s": round(median["writes"], 2),
        "until_whole_s": round(median["whole"], 2),
        "tick_ms": round(median["ticks"], 1),
        "idle_tick_ms": round(median["idle_ticks"], 1),
        "gigabytes": round(found["bytes"] / 1e9, 3),
        "parameters": found["parameters"],
    }
    for name in median:
        print_rank0(f"{name}: {told(found[name])}")
    if args.out:
        rows = [
            f"- {figures['parameters']:,} parameters, 2 processes, ZeRO-1, fp32: {figures['gigabytes']} GB",
            f"- baseline, the same bytes written once and forced to the disk: {told(found['writes'])} s, median {median['writes']:.2f}",
            f"- a save that training waits for: {told(found['sync'])} s, median {median['sync']:.2f}; "
            f"over the baseline **{figures['sync_stall_ratio']}**",
            f"- a save beside training (`checkpoint.async_save`) stalls it: {told(found['async'])} s, median {median['async']:.3f}; "
            f"over the baseline **{figures['stall_ratio']}**; complete after {told(found['whole'])} s",
            f"- longest pause of a Python loop on the training's thread: {told(found['ticks'])} ms beside a save that is written, "
            f"{told(found['idle_ticks'])} ms without one, on cores that others may use too",
        ]
        args.out.write_text("\n".join([*head("What a save costs", "benchmarks.save_stall"), "", *rows, ""]))
    print_json(figures)


def told(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="saves (default 3)")
    parser.add_argument("--dir", help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--out", type=result_path, help="Markdown file to write the result to")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
