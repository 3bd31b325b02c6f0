"""The fit loop, and the trainer: all that it works with. What else happens at a step is in the callbacks."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.checkpoint.manager import CheckpointMetadata, gather
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.loader import PackLoader, ValidationLoader
from ttt_dist.launch.rendezvous import ranges
from ttt_dist.model.structure import count_parameters
from ttt_dist.parallel.deepspeed_adapter import wrap_optimizer_step
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.micro_batch_norms import MicroBatchNorms
from ttt_dist.telemetry.events import EventKind, Events
from ttt_dist.telemetry.metrics import MetricsLog
from ttt_dist.telemetry.run_folder import open_run_folder
from ttt_dist.training import schedule
from ttt_dist.training.callbacks import Callback, callback_states, load_callback_states
from ttt_dist.training.default_callbacks import all_callbacks
from ttt_dist.training.dry_run import describe_data, describe_trained
from ttt_dist.training.noise_scale import NoiseScale
from ttt_dist.training.skip_step import SkipStep
from ttt_dist.training.step import StepResult, train_step
from ttt_dist.training.step_metrics import MetricsAccumulator
from ttt_dist.training.stop_signals import SignalHandler
from ttt_dist.training.watchdog import Watchdog
from ttt_dist.util.console import Progress, print_rank0
from ttt_dist.util.errors import StopRequestedError

if TYPE_CHECKING:
    import deepspeed

    from ttt_dist.training.plan import TrainPlan


@dataclass(kw_only=True)
class Trainer:
    """All that the loop and its callbacks work with."""

    config: Recipe
    engine: deepspeed.DeepSpeedEngine
    """`engine.module` is this process's part of the model."""
    mesh: Mesh
    loader: PackLoader
    held_out: dict[str, ValidationLoader]
    """By name; `` is that of a single one."""
    metadata: CheckpointMetadata
    guard: SkipStep
    stop: SignalHandler
    watchdog: Watchdog
    window: MetricsAccumulator
    """The steps since the last record."""
    noise_scale: NoiseScale | None
    """Where the settings ask for it."""
    metrics: MetricsLog | None
    """Rank 0 only."""
    events: Events
    callbacks: list[Callback]
    start_step: int
    """Updates done before this start of the run."""
    interruption: str | None = None
    """Who asks that the run stop after the step at hand, to be started again; the same on all ranks."""
    stop_reason: str | None = None
    """Why the training ends with the step at hand though there were more: for callbacks, which set it on all ranks alike."""

    @classmethod
    def of_plan(
        cls, plan: TrainPlan, engine: deepspeed.DeepSpeedEngine, start_step: int, counters: dict[str, Any],
        *, stop: SignalHandler, events: Events, watchdog: Watchdog,
    ) -> Trainer:  # fmt: skip
        """The trainer of a run that goes on after `start_step` updates with these counters; needs a process group."""
        config, guard = plan.config, SkipStep(plan.config.guard, counters)
        load_callback_states(plan.callbacks, counters.get("callbacks", []))
        wrap_optimizer_step(engine, guard.accepts)
        noise_scale = None
        if every := config.telemetry.noise_scale_every:
            noise_scale = NoiseScale(MicroBatchNorms(engine.module, plan.mesh), every, counters.get("noise_scale"))
        # What the run has given up on is in a file of its own: here too, it would count twice where config.yaml starts a run.
        recorded = replace(config, data=replace(config.data, skip=plan.asked.data.skip))
        return cls(
            config=config,
            engine=engine,
            mesh=plan.mesh,
            loader=plan.loader,
            held_out=plan.held_out,
            metadata=plan.metadata,
            guard=guard,
            stop=stop,
            watchdog=watchdog,
            window=MetricsAccumulator.of_run(config, plan.metadata.layout.vocab_size),
            noise_scale=noise_scale,
            metrics=open_run_folder(recorded, plan.mesh.world_size, start_step) if plan.mesh.rank == 0 else None,
            events=events,
            callbacks=all_callbacks(config, plan.mesh.rank, start_step, plan.callbacks),
            start_step=start_step,
        )

    @property
    def is_last(self) -> bool:
        """Whether no step follows the one at hand, by the will of a callback or of whoever runs the job."""
        return bool(self.stop_reason or self.interruption)

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def tell(self, event: EventKind, step: int, **fields: Any) -> None:
        """An entry in the run's diary, by rank 0."""
        if self.metrics is not None:
            self.events.log(event, step, **fields)

    def log(self, step: int, values: dict[str, float]) -> None:
        """A record in metrics.jsonl and in what else takes them, by rank 0."""
        if self.metrics is not None:
            self.metrics.log(step, values)

    def is_due(self, step: int, every: int) -> bool:
        """Whether `step` is one of every `every` (0: never), or the last one."""
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def learning_rate(self, step: int) -> float:
        """That of a step's update."""
        return schedule.learning_rate(step - 1, self.config.train, self.loader.sizes)

    @property
    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizer; collective where a callback's is."""
        noise_scale = {"noise_scale": self.noise_scale.state} if self.noise_scale else {}
        return {**self.guard.state, **noise_scale, "callbacks": callback_states(self.callbacks)}

    def announce(self, checkpoint: Path | None) -> None:
        """Tell of the start: what is trained, on what, from which checkpoint; collective."""
        world_size = self.mesh.world_size
        names = gather(socket.gethostname())
        hosts = {
            name: ranges([rank for rank, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)
        }
        self.tell(
            "start", self.start_step,
            checkpoint=checkpoint and str(checkpoint), world_size=world_size, mesh=str(self.mesh), hosts=hosts,
        )  # fmt: skip
        num_parameters = sum(count_parameters(self.config.model, self.metadata.layout.padded_vocab_size).values())
        print_rank0(
            f"{self.folder}: {num_parameters:,} parameters on {world_size} process(es), {self.mesh}, from step {self.start_step}"
        )
        if told := describe_trained(self.config, self.metadata.layout):
            print_rank0(f"{told} are trained")
        for line in describe_data(self.loader, self.config.train.steps):
            print_rank0(line)

    def close(self) -> None:
        """End everything but the process group; what one of them raises does not keep the others from it."""
        with ExitStack() as stack:  # the last one in is closed first
            if self.metrics is not None:
                stack.callback(self.metrics.close)
            for part in (self.loader, self.stop, self.watchdog):
                stack.callback(part.close)
            for callback in reversed(self.callbacks):
                stack.callback(callback.close, self)


def fit(trainer: Trainer) -> int:
    """Train to the last step, or to where a callback ends it, with what the callbacks do around each one; steps done.

    Raises StopRequestedError when asked to stop, with a checkpoint saved, and DivergedError, without.
    """
    step, last = trainer.start_step, trainer.config.train.steps
    with Progress(last, "training", "step") as progress:
        progress.skip(trainer.start_step)
        for step in range(trainer.start_step + 1, last + 1):
            for callback in trainer.callbacks:
                callback.pre_step(trainer, step)
            result = run_step(trainer, step)
            trainer.interruption = trainer.stop.should_stop(trainer.engine.device)
            progress.note = result.losses.told(digits=3)
            for callback in trainer.callbacks:
                callback.post_step(trainer, step, result)
            progress.advance()
            if trainer.stop_reason:
                print_rank0(f"{trainer.folder}: the training ends at step {step} of {last}: {trainer.stop_reason}")
                break
            if trainer.interruption and step < last:
                trainer.tell("stop", step, reason=trainer.interruption)
                raise StopRequestedError(
                    f"{trainer.folder}: {trainer.interruption}; saved at step {step}, start again to go on"
                )
    return step


def run_step(trainer: Trainer, step: int) -> StepResult:
    """Read a step's packs, train on them, and count both for the next record; collective."""
    guard = trainer.config.guard
    # The first step may compile; what is no step may take as long.
    limit_s = guard.start_timeout if step == trainer.start_step + 1 else guard.step_timeout
    begin = time.perf_counter()
    trainer.watchdog.mark(step, "reading data", limit_s)
    batches = trainer.loader.step(step - 1)
    data_s = time.perf_counter() - begin
    trainer.watchdog.mark(step, "forward and backward", limit_s)
    is_recorded = trainer.is_due(step, trainer.config.telemetry.log_every)
    norms = trainer.noise_scale.norms_at(step) if trainer.noise_scale else None
    result = train_step(trainer.engine, trainer.mesh, batches, trainer.learning_rate(step), norms, is_recorded)
    if trainer.noise_scale:
        trainer.noise_scale.add(result)
    trainer.window.add(result, data_s, time.perf_counter() - begin)
    return result
