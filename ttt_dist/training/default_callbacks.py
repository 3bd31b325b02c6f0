"""What every run does beside its steps: the log, evaluations, checkpoints and so on, as callbacks of the loop."""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.data_skips import add_skip, read_skips
from ttt_dist.checkpoint.export import export_model
from ttt_dist.config.pipeline import Recipe
from ttt_dist.launch.node_check import end_for
from ttt_dist.parallel.compile import COMPILER
from ttt_dist.telemetry.profiler import ProfileWindow
from ttt_dist.training.callbacks import Callback
from ttt_dist.training.checkpointing import Checkpointing
from ttt_dist.training.step import Losses, StepResult
from ttt_dist.training.suspect_step import Verdict, compute_again
from ttt_dist.training.validate import held_out_loss
from ttt_dist.util.console import print_rank0, warn
from ttt_dist.util.errors import DivergedError, StopRequestedError

if TYPE_CHECKING:
    from ttt_dist.training.loop import Trainer

MOST_PACKS = 16  # that a line names; events.jsonl has all


def all_callbacks(config: Recipe, rank: int, start_step: int, users: list[Callback]) -> list[Callback]:
    """Those of this run in the order in which they are called."""
    return [
        StageNotice(),
        Profiling(ProfileWindow.of_run(config, rank, start_step)),
        CompileNotice(),
        SkippedSteps(),
        GarbageCollection(config.train.gc_every),
        Records(),
        Evaluation(),
        *users,
        Exporting(),
        Checkpointing(),
    ]


class StageNotice(Callback):
    """Tells where a stage of the objective begins."""

    def pre_step(self, trainer: Trainer, step: int) -> None:
        objective, done = trainer.config.objective, step - 1
        for number, stage in enumerate(objective.stages):
            if stage.from_step == done:
                print_rank0(f"step {done}: objective.stages.{number} begins: {objective.at(done)}")
                trainer.tell("stage", done, stage=number, objective=str(objective.at(done)))


class Profiling(Callback):
    """Traces the steps that telemetry.profile_* asks for, their reading of data included."""

    def __init__(self, window: ProfileWindow) -> None:
        self.window = window

    def pre_step(self, trainer: Trainer, step: int) -> None:
        self.window.begin_step(step)

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        self.window.end_step(step)

    def close(self, trainer: Trainer) -> None:
        self.window.close()


class CompileNotice(Callback):
    """Tells how many graphs the first step has compiled: a run with none would only be slow."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        if not trainer.config.train.compile or step != trainer.start_step + 1:
            return
        graphs = COMPILER.num_graphs
        if graphs:
            print_rank0(f"train.compile: the blocks are {graphs} compiled graph(s)")
        else:
            warn("train.compile=true, but nothing was compiled: the blocks run as they are")
        trainer.tell("compiled", step, graphs=graphs)


class SkippedSteps(Callback):
    """Counts steps that were not applied and tells whose data they were of; ends the run after too many in a row."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        """Tell of a skipped step. Raises BadDeviceError where computing it again blames a device, DivergedError after too many in a row."""
        guard = trainer.guard
        if not guard.end_step(result.grad_norm):
            return
        warn(f"step {step} skipped: loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}")
        evidence = self._evidence(trainer, step, result)
        verdict = compute_again(trainer, step, result) if trainer.config.guard.recompute else None
        trainer.tell("skipped_step", step, **evidence, **({"verdict": verdict.record} if verdict else {}))
        if verdict:
            self._follow(trainer, step, verdict, evidence["ranks"])
        if guard.gives_up:
            told = (
                f"{trainer.folder}: {guard.in_a_row} steps in a row skipped, up to step {step} (loss {result.loss:.4g}, "
                f"gradient norm {result.grad_norm:.4g}); events.jsonl has what each rank read"
            )
            self._pass_over_data(trainer, step, told)
            raise DivergedError(
                f"{told}; lower train.lr or mend the data, and start again: the run goes on from its last checkpoint"
            )

    def _follow(self, trainer: Trainer, step: int, verdict: Verdict, ranks: list[dict[str, Any]]) -> None:
        """Tell of the verdict; raise BadDeviceError where it is against a device."""
        told = f"step {step} computed again: {verdict.told}"
        if verdict.kind == "device":
            hosts = ",".join(dict.fromkeys(ranks[rank]["host"] for rank in verdict.ranks))
            end_for(
                verdict.ranks,
                f"{trainer.folder}: {told}; leave {hosts} out (--exclude={hosts}) and start again: the run goes on from its "
                "last checkpoint",
            )
        packs = list(dict.fromkeys(pack for rank in verdict.ranks for pack in ranks[rank]["packs"]))
        more = f" and {len(packs) - MOST_PACKS} more" if len(packs) > MOST_PACKS else ""
        warn(told + (f"; packs {', '.join(packs[:MOST_PACKS])}{more}" if packs else ""))

    def _pass_over_data(self, trainer: Trainer, step: int, told: str) -> None:
        """Where the settings allow, end this start of the run so that the next one leaves out the data since the last checkpoint."""
        folder, allowed = trainer.folder, trainer.config.guard.max_data_skips
        if manager.from_first_rank(len(read_skips(folder))) >= allowed:  # before rank 0 adds one
            return
        first = trainer.start_step
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpointing):
                callback.finish(trainer)  # or the next start would begin at a later step than is noted here
                first = max(first, callback.newest)
        manager.on_first_rank(lambda: add_skip(folder, first, step))
        trainer.tell("data_skipped", step, steps=[first, step])
        raise StopRequestedError(
            f"{told}; start again: the run goes on from step {first} and passes over the packs of steps {first} to {step - 1}"
        )

    def _evidence(self, trainer: Trainer, step: int, result: StepResult) -> dict[str, Any]:
        """What each rank read and what came of it; collective."""
        own = {
            "rank": dist.get_rank(),
            "host": socket.gethostname(),
            "loss_sums": [str(value) for value in result.own_sums.tolist()],
            "packs": [f"{place.source}:{place.pack}" for place in trainer.loader.sample_indices(step - 1)],
        }
        return {
            "loss": str(result.loss),
            "grad_norm": str(result.grad_norm),
            "in_a_row": trainer.guard.in_a_row,
            "ranks": manager.gather(own),
        }


class GarbageCollection(Callback):
    """Collects on all processes at the same steps: one that pauses when Python likes keeps all others waiting."""

    def __init__(self, every: int) -> None:
        """Every so many steps; 0 leaves it to Python."""
        self.every = every
        if every:
            gc.disable()
            gc.collect()

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        if self.every and step % self.every == 0:
            gc.collect(1)


class Records(Callback):
    """The record of the last steps, every telemetry.log_every."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        if trainer.is_due(step, trainer.config.telemetry.log_every):
            values = trainer.window.record(trainer.learning_rate(step))
            if trainer.noise_scale:
                values |= trainer.noise_scale.record(trainer.loader.sizes.global_batch(step - 1))
            trainer.log(step, {**values, "skipped_steps": trainer.guard.skipped, **self._stage(trainer, step)})

    def _stage(self, trainer: Trainer, step: int) -> dict[str, float]:
        """The number of the objective's stage that the step was of, where there are any."""
        objective = trainer.config.objective
        return {"stage": objective.stage_at(step - 1)} if objective.stages else {}


class Evaluation(Callback):
    """The loss on each set of held-out packs, every train.eval_every; then `evaluated`."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        if not trainer.is_due(step, trainer.config.train.eval_every):
            return
        for name, packs in trainer.held_out.items():
            trainer.watchdog.mark(step, "evaluating", trainer.config.guard.start_timeout)
            losses = held_out_loss(trainer.engine, trainer.mesh, packs, name)
            for callback in trainer.callbacks:
                callback.evaluated(trainer, step, losses)

    def evaluated(self, trainer: Trainer, step: int, losses: Losses) -> None:
        name = losses.held_out
        trainer.log(step, losses.record(f"eval_{name}_" if name else "eval_"))
        print_rank0(f"step {step}: held-out {f'{name}: ' if name else ''}{losses.told(digits=4)}")


class Exporting(Callback):
    """A model folder every export.every steps, unless the run is asked to stop: its save comes first."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        config = trainer.config
        if not config.export.every or step % config.export.every or trainer.interruption:
            return
        trainer.watchdog.mark(step, "exporting the model", config.guard.start_timeout)
        folder = trainer.folder / "exports" / f"step-{step:08d}"
        export_model(trainer.engine, trainer.mesh, config, trainer.metadata.layout, folder, step)
        print_rank0(f"step {step}: {folder}")
