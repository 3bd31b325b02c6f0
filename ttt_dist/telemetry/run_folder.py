"""What a run folder says about its run besides the figures: versions, hardware, code revision, command."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from ttt_dist.config.loader import save_config, to_dict
from ttt_dist.config.run import Config, TelemetryConfig
from ttt_dist.telemetry.best_effort import BestEffort
from ttt_dist.telemetry.metrics import MetricsLog, open_metrics
from ttt_dist.util.atomic_files import atomic_write, remove_leftovers
from ttt_dist.util.errors import UserError

WRITTEN_WHOLE = ("config.yaml", "environment.json", "metrics.jsonl")
PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers", "numpy")


def require_sinks(chosen: TelemetryConfig) -> None:
    """Raise UserError where a package that a setting needs is not installed."""
    wanted = {"wandb": chosen.wandb != "off", "tensorboard": chosen.tensorboard}
    for package in (name for name, is_wanted in wanted.items() if is_wanted):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"telemetry.{package} needs the package {package}: install it or switch the setting off")


def open_run_folder(config: Config, world_size: int, start_step: int) -> MetricsLog:
    """Write what this start of the run is, and open the log of its figures; on rank 0 only. What cannot be written is told."""
    run_dir, attempt = Path(config.run_dir), BestEffort()
    with attempt(run_dir):
        remove_leftovers(*(run_dir / name for name in WRITTEN_WHOLE))
    with attempt(run_dir / "config.yaml"):
        save_config(config, run_dir / "config.yaml")
    with attempt(run_dir / "environment.json"):
        write_environment(run_dir, environment(world_size, start_step))
    chosen = config.telemetry
    return open_metrics(run_dir, start_step, to_dict(config), chosen.wandb, chosen.wandb_project, chosen.tensorboard)


def environment(world_size: int, start_step: int) -> dict[str, Any]:
    """Everything about this start of the run that its configuration does not say."""
    import torch

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "start_step": start_step,
        "command": sys.argv,
        "world_size": world_size,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": {
            "host": platform.node(),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "threads_per_process": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def write_environment(run_dir: Path, values: dict[str, Any]) -> None:
    """RUN/environment.json of the newest start."""
    with atomic_write(run_dir / "environment.json") as file:
        file.write(json.dumps(values, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The code's git revision, with `-dirty` where files were changed; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
