"""When a run saves, where to, and what is told of it, as a callback of the loop."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.async_save import AsyncSaver, Saved
from ttt_dist.checkpoint.local_saves import LocalSaves
from ttt_dist.training.callbacks import Callback
from ttt_dist.training.step import StepResult
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from ttt_dist.training.loop import Trainer


class Checkpointing(Callback):
    """A checkpoint every checkpoint.save_every steps, and where the run ends before its last step; then `checkpoint_saved`.

    With checkpoint.save_every_minutes also at the first step that ends so long after the last save, or the start.
    With checkpoint.local_every, sets on the hosts' disks between them, unless a save is still being written. While steps are skipped
    nothing is saved but the end of the run: there is nothing new, and a start again shall meet the data that was skipped once more.
    """

    def __init__(self) -> None:
        self.saver: AsyncSaver | None = None
        self.local: LocalSaves | None = None
        self.newest = 0
        """Step of the newest complete save of this start of the run, on the hosts' disks too."""
        self._is_owed = False
        """Whether a checkpoint waits for a step that is not skipped."""
        self._stall_s = 0.0
        """How long the save in flight has kept training waiting."""

    def pre_step(self, trainer: Trainer, step: int) -> None:
        if step == trainer.start_step + 1:
            self._count_from_now(trainer)

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        """Save where that is due; a save that falls on a skipped step waits for one that is not."""
        checkpoint = trainer.config.checkpoint
        if self.saver is None and (checkpoint.async_save or checkpoint.local_every):
            self.saver = AsyncSaver(trainer.engine)
            self.local = LocalSaves(trainer.config) if checkpoint.local_every else None
        if self.saver is not None:
            self._end(trainer, self.saver.poll())
        self._is_owed |= trainer.stop.is_save_due or trainer.is_due(step, checkpoint.save_every)
        is_end, is_skipped = trainer.is_last or step == trainer.config.train.steps, trainer.guard.in_a_row > 0
        if is_end or (self._is_owed and not is_skipped):
            self._is_owed = False
            trainer.watchdog.mark(step, "saving a checkpoint", trainer.config.guard.start_timeout)
            self._save(trainer, step)
            self._count_from_now(trainer)  # and not from where it began: a save that takes long asks for no other
        elif (
            self.saver
            and self.local
            and step % checkpoint.local_every == 0
            and not (is_skipped or self.saver.in_flight)
        ):
            begin = time.perf_counter()
            self.local.save(self.saver, step, trainer.metadata, trainer.counters)
            self._stall_s, self.saver.waited_s = time.perf_counter() - begin, 0.0

    def finish(self, trainer: Trainer) -> None:
        """Wait for what is in flight; collective."""
        if self.saver is not None:
            self._end(trainer, self.saver.wait())

    def close(self, trainer: Trainer) -> None:
        """What is in flight becomes complete, where that can be, whatever has ended the run."""
        saved = None if self.saver is None else self.saver.close()
        if saved is not None:
            self._tell(trainer, saved)

    def _count_from_now(self, trainer: Trainer) -> None:
        minutes = trainer.config.checkpoint.save_every_minutes
        trainer.stop.save_at = time.monotonic() + 60 * minutes if minutes else math.inf

    def _save(self, trainer: Trainer, step: int) -> None:
        """Save once what is in flight has ended. The run's last save is waited for, and its failure ends the run."""
        begin = time.perf_counter()
        if self.saver is not None:
            self._end(trainer, self.saver.wait())
            self.saver.waited_s = 0.0
        what: tuple[Any, ...] = (
            trainer.folder / "checkpoints", step, trainer.metadata, trainer.counters, trainer.config.checkpoint
        )  # fmt: skip
        if self.saver is None or not trainer.config.checkpoint.async_save:
            folder = manager.save(trainer.engine, *what)
            self._stall_s = time.perf_counter() - begin
            self._end(trainer, Saved(step, folder, self._stall_s))
            return
        saved = self.saver.save(*what)
        if is_last := trainer.is_last or step == trainer.config.train.steps:
            saved = saved or self.saver.wait()
        self._stall_s = time.perf_counter() - begin
        if is_last and saved is not None and saved.failure:
            raise UserError(saved.failure)
        self._end(trainer, saved)

    def _end(self, trainer: Trainer, saved: Saved | None) -> None:
        """What follows when a save has ended; the same on all ranks."""
        if saved is None:
            return
        self._tell(trainer, saved)
        if saved.failure:
            return
        self.newest = saved.step
        if saved.is_local and self.local is not None:
            self.local.complete = saved.step
        else:
            for callback in trainer.callbacks:
                callback.checkpoint_saved(trainer, saved.step, saved.folder)

    def _tell(self, trainer: Trainer, saved: Saved) -> None:
        if saved.failure:
            kind = "local save" if saved.is_local else "checkpoint"
            warn(f"no {kind} of step {saved.step}: {saved.failure}; the run goes on to its next save")
            trainer.tell("save_failed", saved.step, reason=saved.failure)
            return
        trainer.stop.longest_save_s = max(trainer.stop.longest_save_s, saved.seconds)
        waited_s = 0.0 if self.saver is None else self.saver.waited_s
        trainer.tell(
            "local_save" if saved.is_local else "checkpoint", saved.step,
            seconds=round(self._stall_s + waited_s, 3), write_seconds=round(saved.seconds, 3),
        )  # fmt: skip
