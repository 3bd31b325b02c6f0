"""The figures of a run as it goes: metrics.jsonl always, TensorBoard and Weights & Biases where asked for.

One record per logged step; keys are flat names (docs/watching.md), values numbers. Only rank 0 makes a MetricsLog.
"""

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol


class Sink(Protocol):
    """Something that takes the records beside metrics.jsonl."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


class MetricsLog:
    """Appends records to `run_dir`/metrics.jsonl and passes them on to the sinks."""

    def __init__(self, run_dir: Path, start_step: int, sinks: list[Sink]) -> None:
        """Records beyond `start_step` are dropped: they belong to steps that are about to be done again."""
        self.path = run_dir / "metrics.jsonl"
        self._sinks = sinks
        kept = [line for line in _lines(self.path) if _step_of(line) <= start_step]
        self.path.write_text("".join(kept))
        self._file = self.path.open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record, at once: a run that dies leaves all records of its past. JSON has no NaN: it is written as null."""
        sound = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **sound}) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.log(step, values)

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()


class TensorBoard:
    """Event files in `run_dir`/tensorboard."""

    def __init__(self, run_dir: Path, start_step: int) -> None:
        """Events of steps that are about to be done again are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run, one for all starts of a run folder: its id is in `run_dir`/wandb/run-id.txt.

    `mode` "offline" keeps everything in `run_dir`/wandb, a folder for each start; `wandb sync` makes one run of them.
    """

    def __init__(self, run_dir: Path, project: str, mode: Literal["offline", "online"], config: dict[str, Any]) -> None:
        import wandb

        path = run_dir / "wandb" / "run-id.txt"
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            path.write_text(f"{secrets.token_hex(4)}\n")
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

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_metrics(
    run_dir: Path,
    start_step: int,
    config: dict[str, Any],
    wandb: Literal["off", "offline", "online"],
    wandb_project: str,
    tensorboard: bool,
) -> MetricsLog:
    """The records of a run with the sinks that its settings ask for; `config` is shown by Weights & Biases."""
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(TensorBoard(run_dir, start_step))
    if wandb != "off":
        sinks.append(WandB(run_dir, wandb_project, wandb, config))
    return MetricsLog(run_dir, start_step, sinks)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def _step_of(line: str) -> float:
    """The step of a record; a line cut short by a crash counts as beyond all steps."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
