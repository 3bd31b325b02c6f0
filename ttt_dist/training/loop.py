"""The fit loop: what happens at every step, and what every so many steps."""

import gc
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch.distributed as dist

from ttt_dist.checkpoint import manager
from ttt_dist.config.run import Config
from ttt_dist.data.loader import PackLoader, ValidationLoader
from ttt_dist.parallel.activation_checkpoint import COMPILER
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.telemetry.events import EventKind, Events
from ttt_dist.telemetry.metrics import MetricsLog
from ttt_dist.telemetry.profiler import ProfileWindow
from ttt_dist.training.schedule import learning_rate
from ttt_dist.training.skip_step import SkipStep
from ttt_dist.training.step import StepResult, train_step
from ttt_dist.training.step_metrics import MetricsAccumulator
from ttt_dist.training.stop_signals import SignalHandler
from ttt_dist.training.validate import held_out_loss
from ttt_dist.training.watchdog import Watchdog
from ttt_dist.util.console import Progress, print_rank0, warn
from ttt_dist.util.errors import DivergedError, StopRequestedError


@dataclass
class Trainer:
    """All that the loop works with."""

    config: Config
    engine: deepspeed.DeepSpeedEngine
    mesh: Mesh
    loader: PackLoader
    held_out: ValidationLoader | None
    metadata: manager.CheckpointMetadata
    guard: SkipStep
    stop: SignalHandler
    watchdog: Watchdog
    profile: ProfileWindow
    metrics: MetricsLog | None
    """Rank 0 only."""
    events: Events
    start_step: int
    """Updates done before this start of the run."""

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def tell(self, event: EventKind, step: int, **fields: Any) -> None:
        """An entry in the run's diary, by rank 0."""
        if self.metrics is not None:
            self.events.log(event, step, **fields)

    def close(self) -> None:
        """End everything but the process group."""
        self.profile.close()
        self.watchdog.close()
        self.stop.close()
        self.loader.close()
        if self.metrics is not None:
            self.metrics.close()


def fit(run: Trainer) -> None:
    """Train from `run.start_step` to the last step, with records, evaluations and checkpoints as configured.

    Raises StopRequestedError when asked to stop, with a checkpoint saved, and DivergedError, without.
    """
    train, every = run.config.train, run.config.checkpoint.save_every
    window = MetricsAccumulator.of_run(run.config, run.metadata.layout.vocab_size)
    collect = GarbageCollection(train.gc_every)
    with Progress(train.steps, "training", "step") as progress:
        progress.skip(run.start_step)
        for step in range(run.start_step, train.steps):
            _tell_stage(run, step)
            # The first step may compile; what is no step may take as long.
            limit_s = run.config.guard.start_timeout if step == run.start_step else run.config.guard.step_timeout
            lr = learning_rate(step, train.lr, train.warmup, train.steps, train.min_lr_ratio)
            with run.profile.step(step + 1):
                begin = time.perf_counter()
                run.watchdog.mark(step + 1, "reading data", limit_s)
                batches = run.loader.step(step)
                data_s = time.perf_counter() - begin
                run.watchdog.mark(step + 1, "forward and backward", limit_s)
                result = train_step(run.engine, run.mesh, batches, lr)
                window.add(result, data_s, time.perf_counter() - begin)

            done = step + 1
            if train.compile and step == run.start_step:
                _tell_compiled(run, done)
            if run.guard.end_step(result.grad_norm):
                _skipped(run, done, result)
            reason = run.stop.should_stop(run.engine.device)
            collect.after(done)
            progress.note = result.losses.told(digits=3)
            if _due(done, run.config.telemetry.log_every, train.steps):
                _log(run, done, {**window.record(lr), "skipped_steps": run.guard.skipped, **_stage(run, step)})
            if run.held_out is not None and _due(done, train.eval_every, train.steps):
                _evaluate(run, run.held_out, done)
            if reason or _due(done, every, train.steps):
                _save(run, done)
            progress.advance()
            if reason and done < train.steps:
                run.tell("stop", done, reason=reason)
                raise StopRequestedError(f"{run.folder}: {reason}; saved at step {done}, start again to go on")


def _tell_stage(run: Trainer, step: int) -> None:
    """That a stage of the objective begins, where `step` is its first."""
    objective = run.config.objective
    for number, stage in enumerate(objective.stages):
        if stage.from_step == step:
            print_rank0(f"step {step}: objective.stages.{number} begins: {objective.at(step)}")
            run.tell("stage", step, stage=number, objective=str(objective.at(step)))


def _stage(run: Trainer, step: int) -> dict[str, float]:
    """For the record: the number of the stage that the step was of, where there are any."""
    objective = run.config.objective
    return {"stage": objective.stage_at(step)} if objective.stages else {}


def _save(run: Trainer, done: int) -> None:
    run.watchdog.mark(done, "saving a checkpoint", run.config.guard.start_timeout)
    begin = time.perf_counter()
    keep = run.config.checkpoint
    manager.save(run.engine, run.folder / "checkpoints", done, run.metadata, run.guard.state, keep)
    seconds = time.perf_counter() - begin
    run.stop.longest_save_s = max(run.stop.longest_save_s, seconds)
    run.tell("checkpoint", done, seconds=round(seconds, 3))


def _tell_compiled(run: Trainer, done: int) -> None:
    """How many graphs the first step has compiled: a run with none would only be slow."""
    graphs = COMPILER.num_graphs
    if graphs:
        print_rank0(f"train.compile: the blocks are {graphs} compiled graph(s)")
    else:
        warn("train.compile=true, but nothing was compiled: the blocks run as they are")
    run.tell("compiled", done, graphs=graphs)


def _skipped(run: Trainer, done: int, result: StepResult) -> None:
    """Tell of a step that was not applied, with whose data it was; end the run where there were too many in a row."""
    own = {
        "rank": dist.get_rank(),
        "host": socket.gethostname(),
        "loss_sums": [str(value) for value in result.own_sums.tolist()],
        "packs": [f"{place.source}:{place.pack}" for place in run.loader.sample_indices(done - 1)],
    }
    evidence: dict[str, Any] = {
        "loss": str(result.loss),
        "grad_norm": str(result.grad_norm),
        "in_a_row": run.guard.in_a_row,
        "ranks": manager.gather(own),
    }
    warn(f"step {done} skipped: loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}")
    run.tell("skipped_step", done, **evidence)
    if run.guard.gives_up:
        raise DivergedError(
            f"{run.folder}: {run.guard.in_a_row} steps in a row skipped, up to step {done} (loss {result.loss:.4g}, gradient "
            f"norm {result.grad_norm:.4g}); events.jsonl has what each rank read; lower train.lr or mend the data, and start "
            "again: the run goes on from its last checkpoint"
        )


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


def _evaluate(run: Trainer, held_out: ValidationLoader, done: int) -> None:
    run.watchdog.mark(done, "evaluating", run.config.guard.start_timeout)
    losses = held_out_loss(run.engine, run.mesh, held_out)
    _log(run, done, losses.record("eval_"))
    print_rank0(f"step {done}: held-out {losses.told(digits=4)}")


def _log(run: Trainer, step: int, values: dict[str, float]) -> None:
    if run.metrics is not None:
        run.metrics.log(step, values)


def _due(done: int, every: int, last: int) -> bool:
    """Every `every` steps (0: never) and after the last one."""
    return done == last or (every > 0 and done % every == 0)
