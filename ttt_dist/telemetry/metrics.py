"""The figures of a run as it goes: metrics.jsonl always, TensorBoard and Weights & Biases where asked for.

One record per logged step; keys are flat names (docs/watching.md), values numbers. Only rank 0 makes a MetricsLog.
"""

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ttt_dist.telemetry.best_effort import BestEffort
from ttt_dist.telemetry.json_lines import append_line, is_metrics, read_lines, warn_of_damage
from ttt_dist.util.atomic_files import atomic_write


class Sink(Protocol):
    """Something that takes the records beside metrics.jsonl."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


class MetricsLog:
    """Appends records to `run_dir`/metrics.jsonl and passes them on to the sinks.

    What cannot be written is told once and costs records: metrics.jsonl is tried again with each of them, a sink is not.
    """

    def __init__(self, run_dir: Path, start_step: int, sinks: Mapping[str, Callable[[], Sink]]) -> None:
        """Records beyond `start_step` are dropped: they belong to steps that are about to be done again.

        `sinks` makes each of the others; it is called by its name where it fails.
        """
        self.path = run_dir / "metrics.jsonl"
        self._attempt = BestEffort()
        with self._attempt(self.path):
            drop_after(self.path, start_step)
        self._sinks: dict[str, Sink] = {}
        for name, make in sinks.items():
            with self._attempt(name):
                self._sinks[name] = make()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record, at once: a run that dies leaves all records of its past. JSON has no NaN: it is written as null."""
        sound = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._attempt(self.path):
            append_line(self.path, json.dumps({"step": step, **sound}))
        for name, sink in self._sinks.items():
            if name not in self._attempt.failed:
                with self._attempt(name):
                    sink.log(step, values)

    def close(self) -> None:
        for name, sink in self._sinks.items():
            with self._attempt(name):
                sink.close()


def drop_after(path: Path, start_step: int) -> None:
    """Take the records beyond `start_step`, and damaged lines, out of metrics.jsonl; where there are none it stays untouched.

    What is left is written aside and replaces the file when it is whole. Raises OSError, UserError.
    """
    lines = list(read_lines(path, is_metrics))
    warn_of_damage(path, lines)
    kept = [line for line in lines if line.record is not None and line.record["step"] <= start_step]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.writelines(f"{line.text}\n" for line in kept)


class TensorBoard:
    """An event file in `run_dir`/tensorboard.

    Written by this thread. SummaryWriter has one of its own, which dies of a full disk with a traceback.
    """

    def __init__(self, run_dir: Path, start_step: int) -> None:
        """Events of steps that are about to be done again are hidden."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (folder / name).open("ab")
        self._writer, self._event = RecordWriter(self._file), Event
        self._write(file_version="brain.Event:2")
        self._write(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


class WandB:
    """A Weights & Biases run, one for all starts of a run folder: its id is in `run_dir`/wandb/run-id.txt.

    `mode` "offline" keeps everything in `run_dir`/wandb, a folder for each start; `wandb sync` makes one run of them.

    W&B drops what comes at or below its last step, and so what a run does again after going back. Its own step therefore runs
    on past all that earlier starts have logged, and curves are drawn over `step`, the run's.
    """

    def __init__(
        self, run_dir: Path, start_step: int, project: str, mode: Literal["offline", "online"], config: dict[str, Any]
    ) -> None:
        import wandb

        path = run_dir / "wandb" / "run-id.txt"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            path.write_text(f"{secrets.token_hex(4)}\n")
        self._last = path.with_name("last-step.txt")
        self._ahead = max(_whole_number(self._last) - start_step, 0)
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=path.read_text().strip(),
            resume="allow",
            dir=str(run_dir),
            config=config,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values}, step=step + self._ahead)
        self._last.write_text(f"{step + self._ahead}\n")

    def close(self) -> None:
        self._run.finish()


def _whole_number(path: Path) -> int:
    """What a file of one number says; 0 where it does not."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def open_metrics(
    run_dir: Path,
    start_step: int,
    config: dict[str, Any],
    wandb: Literal["off", "offline", "online"],
    wandb_project: str,
    tensorboard: bool,
) -> MetricsLog:
    """The records of a run with the sinks that its settings ask for; `config` is shown by Weights & Biases."""
    sinks: dict[str, Callable[[], Sink]] = {}
    if tensorboard:
        sinks[str(run_dir / "tensorboard")] = lambda: TensorBoard(run_dir, start_step)
    if wandb != "off":
        sinks[str(run_dir / "wandb")] = lambda: WandB(run_dir, start_step, wandb_project, wandb, config)
    return MetricsLog(run_dir, start_step, sinks)
