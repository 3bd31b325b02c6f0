"""The real command where the device has no memory for a step: its one line, and the snapshot that it leaves."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Figures, Measurement, Setting
from benchmarks.gpu.starved_train import STARVED
from benchmarks.gpu.train_command import config_in


def measurements(setting: Setting) -> Iterator[Measurement]:
    """One run, with its allocations recorded."""
    yield "snapshot", partial(run_out, setting)


def run_out(setting: Setting) -> Figures:
    """What was told and kept. Raises AssertionError where the line or the snapshot lacks something."""
    setting.require_cuda("running out of device memory")
    run_dir = setting.work / "starved"
    settings = [f"run_dir={run_dir}", "model.num_layers=2", "telemetry.memory_history=true"]
    command = [sys.executable, "-m", "benchmarks.gpu.starved_train", "--config", str(config_in(setting, setting.work))]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and line.startswith("error: rank 0 "), f"exit status {done.returncode}, {line}"
    for part in (
        f"step {STARVED}: forward and backward",
        "Tried to allocate",
        "dry run's estimate is",
        "train.micro_batch",
    ):
        assert part in line, f"no {part!r} in: {line}"
    return of_snapshot(run_dir / "logs" / "rank-00000.memory.pickle") | {"is_told": 1}


def of_snapshot(path: Path) -> Figures:
    """What is in it. Raises AssertionError where it has not seen the memory run out, or whose the blocks are."""
    snapshot = pickle.loads(path.read_bytes())
    entries = [entry for trace in snapshot["device_traces"] for entry in trace]
    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    held: list[dict[str, Any]] = [block for block in blocks if block["state"] == "active_allocated"]
    known = [block for block in held if block.get("frames")]
    assert any(entry["action"] == "oom" for entry in entries), f"none of {len(entries)} entries is out of memory"
    assert known, f"none of {len(held)} blocks that are held has a stack"
    return {
        "entries": len(entries),
        "held_gb": sum(block["size"] for block in held) / 1e9,
        "known_share": sum(block["size"] for block in known) / sum(block["size"] for block in held),
        "file_mb": path.stat().st_size / 1e6,
    }
