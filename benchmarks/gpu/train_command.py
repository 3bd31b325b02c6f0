"""The real command on one GPU: speed from its metrics.jsonl, waits of the host, and peak memory against its dry run's."""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.batches import draw_packs
from benchmarks.gpu.setting import Figures, Measurement, Setting, Skipped
from ttt_dist.config.run import TrainConfig
from ttt_dist.data.shards import ShardWriter

STEPS, TIMED = 8, 3  # of a run; the last ones are timed
NUM_PACKS, MICRO_BATCHES, ROWS = 60, 3, 2
MEANS = ("step_s", "forward_s", "backward_s", "optimizer_s", "data_s", "useful_tokens_per_s", "mfu")
UNITS = {"MiB": 2**20, "GiB": 2**30}
COMPILED = "train.compile=true"


def zero1(setting: Setting) -> Iterator[Measurement]:
    """ZeRO-1 with compiled blocks, as the recipes have it; in fp8; with selective checkpointing."""
    yield "compiled", partial(run, setting, COMPILED)
    yield "compiled, fp8", partial(run, setting, COMPILED, "train.fp8=true")
    yield "compiled, selective", partial(run, setting, COMPILED, "train.activation_checkpointing=selective")


def others(setting: Setting) -> Iterator[Measurement]:
    """ZeRO-1 eager, and ZeRO-3."""
    selective = "train.activation_checkpointing=selective"
    yield "ZeRO-3, eager, selective", partial(run, setting, "deepspeed=ds_configs/zero3.json", selective)
    yield "ZeRO-1, eager, selective", partial(run, setting, selective)


def run(setting: Setting, *overrides: str) -> Figures:
    """Train for some steps, with the dry run beside it; figures of both."""
    for override in overrides:
        key = override.partition("=")[0].partition("train.")[2]
        if key and key not in {field.name for field in fields(TrainConfig)}:
            raise Skipped(f"this build has no train.{key}")
    if COMPILED in overrides:
        setting.require_cuda("compiled blocks")
    folder = setting.work / "_".join(re.sub(r"\W+", "-", override) for override in overrides)
    folder.mkdir()
    config, watched = config_in(setting, setting.work), folder / "watched.json"
    arguments = ["--config", str(config), f"run_dir={folder / 'run'}", *overrides]
    dry_run = [sys.executable, "ttt_dist/train.py", *arguments, "--dry-run"]
    watch = [sys.executable, "-m", "benchmarks.gpu.watched_train", str(watched), setting.device, str(STEPS), *arguments]
    with subprocess.Popen(dry_run, stdout=subprocess.PIPE, text=True) as beside:
        succeed(watch)
        said, _ = beside.communicate()
    records = (folder / "run" / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    figures = of_records([json.loads(record) for record in records]) | json.loads(watched.read_text(encoding="utf8"))
    return figures | {"dry_run_gb": said_memory(said) / 1e9}


def succeed(command: list[str]) -> None:
    """Run a command, its output being ours. Raises RuntimeError with the last line of its stderr."""
    last = "no word"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for said in process.stderr or ():
            print(said, end="", flush=True)
            last = said.strip() or last
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}, {last}")


def of_records(records: list[dict[str, float]]) -> Figures:
    """Medians of the last steps, the most memory that was held, and the first loss."""
    last = records[-TIMED:]
    figures: Figures = {key: statistics.median(record[key] for record in last) for key in MEANS if key in last[0]}
    return figures | {"memory_gb": last[-1]["memory_bytes"] / 1e9, "first_step_s": records[0]["step_s"]}


def said_memory(dry_run: str) -> float:
    """Bytes that a dry run says, which prints one decimal place of MiB or GiB."""
    found = re.search(r"^memory +([\d.]+) ([MG]iB)", dry_run, re.MULTILINE)
    if found is None:
        raise ValueError(f"the dry run names no memory: {dry_run[-200:]}")
    return float(found[1]) * UNITS[found[2]]


def config_in(setting: Setting, folder: Path) -> Path:
    """Config file and shards of a mixture, made once in `folder`."""
    path, shards = folder / "config.yaml", folder / "shards"
    if path.exists():
        return path
    (shards / "tokenizer").mkdir(parents=True)
    (shards / "codec").mkdir()
    (shards / "template.json").write_text("{}", encoding="utf8")
    with ShardWriter(shards / "train", {"layout": setting.layout.to_dict(), "seq_len": setting.seq_len}) as writer:
        for pack in draw_packs(setting, NUM_PACKS, setting.seq_len):
            writer.add(pack)
    path.write_text(yaml.safe_dump(settings(setting, shards / "train")), encoding="utf8")
    return path


def settings(setting: Setting, shards: Path) -> dict[str, Any]:
    """Of a run that never comes to save: its last step is far."""
    train = {"steps": 1000, "global_batch": ROWS * MICRO_BATCHES, "micro_batch": ROWS, "lr": 2e-5, "warmup": 10}
    return {
        "run_dir": str(shards.parent / "run"),
        "deepspeed": "ds_configs/zero1.json",
        "model": asdict(setting.config),
        "data": {"train": str(shards)},
        "train": {**train, "precision": "bf16" if setting.on_cuda else "fp32"},
        "telemetry": {"log_every": 1},
    }
