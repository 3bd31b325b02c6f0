"""The fit loop: what happens at every step, and what every so many steps."""

import gc
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import torch

from ttt_dist.config import Config
from ttt_dist.data.loader import HeldOutLoader, PackLoader
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.telemetry.console import Progress, say
from ttt_dist.telemetry.metrics import MetricsLog
from ttt_dist.training import checkpoint
from ttt_dist.training.schedule import learning_rate
from ttt_dist.training.step import StepResult, train_step
from ttt_dist.training.validate import held_out_loss


@dataclass
class Run:
    """All that the loop works with."""

    config: Config
    engine: deepspeed.DeepSpeedEngine
    mesh: Mesh
    loader: PackLoader
    held_out: HeldOutLoader | None
    facts: checkpoint.Facts
    metrics: MetricsLog | None
    """Rank 0 only."""
    start_step: int
    """Updates done before this start of the run."""

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)


def fit(run: Run) -> None:
    """Train from `run.start_step` to the last step, with records, evaluations and checkpoints as configured."""
    train, every = run.config.train, run.config.checkpoint.save_every
    window = Window()
    collect = GarbageCollection(train.gc_every)
    with Progress(train.steps, "training", "step") as progress:
        progress.skip(run.start_step)
        for step in range(run.start_step, train.steps):
            begin = time.perf_counter()
            batches = run.loader.step(step)
            data_s = time.perf_counter() - begin
            lr = learning_rate(step, train.lr, train.warmup, train.steps, train.min_lr_ratio)
            result = train_step(run.engine, run.mesh, batches, lr)
            window.add(result, data_s, time.perf_counter() - begin)

            done = step + 1
            collect.after(done)
            progress.note = f"loss {result.loss:.3f} (ar {result.ar_loss:.3f}, nar {result.nar_loss:.3f})"
            if _due(done, run.config.telemetry.log_every, train.steps):
                _log(run, done, {**_step_record(result, lr), **window.record()})
                window = Window()
            if run.held_out is not None and _due(done, train.eval_every, train.steps):
                _evaluate(run, run.held_out, done)
            if _due(done, every, train.steps):
                checkpoint.save(
                    run.engine, run.folder / "checkpoints", done, run.facts, run.config.checkpoint.keep_last
                )
            progress.advance()


class GarbageCollection:
    """Collects on all processes at the same steps: one that pauses when Python likes keeps all others waiting."""

    def __init__(self, every: int) -> None:
        """Every so many steps; 0 leaves it to Python."""
        self.every = every
        if every:
            gc.disable()
            gc.collect()

    def after(self, done: int) -> None:
        if self.every and done % self.every == 0:
            gc.collect(1)


@dataclass
class Window:
    """Times and tokens of the steps since the last record."""

    steps: int = 0
    useful_tokens: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "forward_backward", "optimizer", "step"), 0.0)
    )

    def add(self, result: StepResult, data_s: float, step_s: float) -> None:
        """Count one step; `step_s` is all of it, the wait for data included."""
        self.steps += 1
        self.useful_tokens += result.counts.useful_tokens
        parts = {
            "data": data_s,
            "forward_backward": result.forward_backward_s,
            "optimizer": result.optimizer_s,
            "step": step_s,
        }
        for name, value in parts.items():
            self.seconds[name] += value

    def record(self) -> dict[str, float]:
        """Mean seconds per step of each phase, the share of waiting for data, useful tokens per second, peak memory."""
        return {
            **{f"{name}_s": value / self.steps for name, value in self.seconds.items()},
            "data_share": self.seconds["data"] / self.seconds["step"],
            "useful_tokens_per_s": self.useful_tokens / self.seconds["step"],
            "memory_bytes": peak_memory(),
        }


def peak_memory() -> int:
    """Most bytes ever held by this process: device memory on CUDA, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _step_record(result: StepResult, lr: float) -> dict[str, float]:
    return {
        "loss": result.loss,
        "ar_loss": result.ar_loss,
        "nar_loss": result.nar_loss,
        "ar_tokens": result.counts.ar_tokens,
        "nar_tokens": result.counts.nar_tokens,
        "grad_norm": result.grad_norm,
        "lr": lr,
    }


def _evaluate(run: Run, held_out: HeldOutLoader, done: int) -> None:
    losses = held_out_loss(run.engine, run.mesh, held_out)
    _log(run, done, {f"eval_{name}": value for name, value in losses._asdict().items()})
    say(f"step {done}: held-out loss {losses.loss:.4f} (ar {losses.ar_loss:.4f}, nar {losses.nar_loss:.4f})")


def _log(run: Run, step: int, values: dict[str, float]) -> None:
    if run.metrics is not None:
        run.metrics.log(step, values)


def _due(done: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never) and after the last one."""
    return done == last or (every > 0 and done % every == 0)
