"""A callback as a user writes one: it tells each call, and on how many ranks, in a file of its own for each rank."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from ttt_dist.training.callbacks import Callback


class Fragile:
    """As a library is whose threads do not outlive the interpreter: taking it down aborts the process."""

    def __del__(self) -> None:
        os.abort()


class Broken(Callback):
    """Brings such a library in."""

    libraries: ClassVar[list[Fragile]] = []

    def __init__(self) -> None:
        self.libraries.append(Fragile())


class Told(Callback):
    """Writes RUN/hooks-0.jsonl; every line has been counted over all ranks by a collective, but the last."""

    def __init__(self, fail_at: int = 0, stop_at: int = 0, keep: object = None) -> None:
        self.fail_at, self.stop_at, self.keep, self.steps = fail_at, stop_at, keep, 0

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "keep": {1, 2} if self.keep == "a set" else self.keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def pre_step(self, trainer: Any, step: int) -> None:
        self._tell(trainer, "pre_step", step)

    def post_step(self, trainer: Any, step: int, result: Any) -> None:
        self.steps += 1
        self._tell(trainer, "post_step", step, loss=result.loss, steps=self.steps)
        if step == self.stop_at:
            trainer.stop_reason = "a hook has seen enough"
        if step == self.fail_at:
            raise ValueError("a hook failed")

    def evaluated(self, trainer: Any, step: int, losses: Any) -> None:
        self._tell(trainer, "evaluated", step, loss=losses.loss)

    def checkpoint_saved(self, trainer: Any, step: int, folder: Path) -> None:
        self._tell(trainer, "checkpoint_saved", step, folder=folder.name, is_there=(folder / "run.json").is_file())

    def close(self, trainer: Any) -> None:
        self._write(trainer, {"hook": "close"})

    def _tell(self, trainer: Any, hook: str, step: int, **fields: Any) -> None:
        ranks = torch.ones(1)
        dist.all_reduce(ranks)
        self._write(trainer, {"hook": hook, "step": step, "ranks": int(ranks), **fields})

    def _write(self, trainer: Any, fields: dict[str, Any]) -> None:
        with (trainer.folder / f"hooks-{dist.get_rank()}.jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")
