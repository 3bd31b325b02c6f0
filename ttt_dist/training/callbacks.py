"""What a run does beside its steps: the base of callbacks, and those of a user's own, which the config names.

    callbacks:
      - my_package.my_module:EveryTenth               # made without arguments
      - {my_package.my_module:Sample: {every: 500}}   # made with every=500

The loop's own (`ttt_dist.training.default_callbacks`) are made of the same stuff. Without torch: a dry run reads this.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_class

if TYPE_CHECKING:
    from ttt_dist.training.loop import Trainer
    from ttt_dist.training.step import Losses, StepResult


class Callback:
    """Override what is needed; every hook does nothing here.

    All hooks are called on all ranks, at the same steps and in the same order: those of the loop itself first, then a
    user's in the order of the config; the save of a step comes last. But in `close` they may use collectives, all ranks
    alike. What a hook raises ends the run. The time of what is done counts: in `pre_step` and `post_step` it belongs to the
    step's `guard.step_timeout`. Steps are counted from 1, as in metrics.jsonl: a hook after step n sees n updates done.
    Setting `trainer.stop_reason` on all ranks alike ends the training after the step at hand, with a checkpoint and the export.

    A constructor is called before any process group exists, in a dry run too: it keeps its settings and no more.
    """

    def pre_step(self, trainer: Trainer, step: int) -> None:
        """Before a step reads its data. All ranks; collectives may be used."""

    def post_step(self, trainer: Trainer, step: int, result: StepResult) -> None:
        """After a step's update, or after it was skipped. All ranks; collectives may be used.

        The losses and the gradient norm of `result` are those of the global batch, the same on all ranks.
        """

    def evaluated(self, trainer: Trainer, step: int, losses: Losses) -> None:
        """After an evaluation on the held-out packs; `losses` are the same on all ranks. All ranks; collectives may be used."""

    def checkpoint_saved(self, trainer: Trainer, step: int, folder: Path) -> None:
        """When a checkpoint is complete, on the disk and the newest one. All ranks; collectives may be used."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint is to keep of it, in values of JSON; rank 0's is kept. All ranks; collectives may be used."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave where the run goes on from a checkpoint, before the first hook. All ranks."""

    def close(self, trainer: Trainer) -> None:
        """At the end of the run, whatever ended it: an error on this rank or another one too. All ranks; no collectives."""


def load_callbacks(entries: list[Any]) -> list[Callback]:
    """The callbacks that the setting `callbacks` names. Raises UserError that names the entry and the remedy."""
    return [_load(*_name_and_arguments(entry)) for entry in entries]


def callback_states(callbacks: list[Callback]) -> list[dict[str, Any]]:
    """What the callbacks have to keep, by name; those with nothing are left out. Raises UserError where JSON cannot hold it."""
    states = [{"name": name_of(callback), "state": callback.state_dict()} for callback in callbacks]
    for entry in states:
        try:
            json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"callbacks: {entry['name']}: state_dict() holds what JSON cannot ({error}); give numbers, text, lists, dicts"
            ) from None
    return [entry for entry in states if entry["state"]]


def load_callback_states(callbacks: list[Callback], states: list[dict[str, Any]]) -> None:
    """Give each callback what a checkpoint kept of it; the second one of a class takes the second of its states."""
    left = list(states)
    for callback in callbacks:
        found = next((entry for entry in left if entry["name"] == name_of(callback)), None)
        if found is not None:
            left.remove(found)
            callback.load_state_dict(found["state"])
    for entry in left:
        warn(
            f"callbacks: the checkpoint keeps the state of {entry['name']}, which this run does not name; it is left out"
        )


def name_of(callback: Callback) -> str:
    """Its class as the config names it."""
    return f"{type(callback).__module__}:{type(callback).__qualname__}"


def _name_and_arguments(entry: Any) -> tuple[str, dict[str, Any]]:
    name, arguments = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or ":" not in name or not isinstance(arguments, dict):
        raise UserError(
            f"callbacks: {entry!r} names no class; write my_package.module:Class, or {{my_package.module:Class: {{every: 10}}}}"
        )
    return name, arguments


def _load(name: str, arguments: dict[str, Any]) -> Callback:
    made_of = load_class(name, "callbacks:", Callback)
    try:
        inspect.signature(made_of).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"callbacks: {name}: cannot be made with {arguments or 'no arguments'} ({error}); "
            f"it takes {inspect.signature(made_of)}"
        ) from None
    made: Callback = made_of(**arguments)
    return made
