"""Which settings decide how a run's weights move, and what of them a start changes in the middle of the run.

A setting counts unless it is named here as one that does not, so that a new one is not passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ttt_dist.config.loader import to_dict
from ttt_dist.config.objective import Objective
from ttt_dist.config.reading import build
from ttt_dist.config.run import Config, TrainConfig
from ttt_dist.data.blend import past
from ttt_dist.util.console import warn

RATE_SETTINGS = ("steps", "lr", "schedule", "schedule_by", "warmup", "decay_steps", "min_lr_ratio")
"""Of `train`: compared by the learning rate that they come to (`ttt_dist.training.plan`)."""
_BY_STEP = ("objective", "data", "train.batch_stages")
"""Compared by what they have decided so far: what begins later may be changed at will."""
_REFUSED = ("model",)
_OUTSIDE = ("run_dir", "parallel", "checkpoint", "export", "telemetry", "callbacks", "corpora", "prep", "evaluation")
"""Where things lie, how they are split, what is told and done beside training."""
_NO_MORE_THAN_ROUNDING = ("deepspeed", "train.activation_checkpointing", "train.compile", "train.gc_every")
_OVER = ("train.init_from", "train.tokens")
"""What the run began with, and where it is to end."""
_GUARDS = tuple(
    f"guard.{name}"
    for name in (
        "max_skipped",
        "max_data_skips",
        "step_timeout",
        "start_timeout",
        "check_nodes",
        "stop_after",
        "recompute",
    )
)
NOT_COMPARED = {
    *(f"train.{name}" for name in (*RATE_SETTINGS, "micro_batch", "eval_every", "eval_packs")),
    *(_BY_STEP + _REFUSED + _OUTSIDE + _NO_MORE_THAN_ROUNDING + _OVER + _GUARDS),
}
"""Keys and whole sections. `train.micro_batch` is one where the objective draws by it."""


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by key, of plain values, that count at every step. What an older build did not record has its default."""
    found: dict[str, Any] = {}
    for name, default in to_dict(Config()).items():
        value = config.get(name, default)
        if isinstance(default, dict):
            given = value if isinstance(value, dict) else {}
            found |= {f"{name}.{inner}": given.get(inner, other) for inner, other in default.items()}
        else:
            found[name] = value
    return {key: value for key, value in found.items() if not {key, key.partition(".")[0]} & NOT_COMPARED}


def warn_of_another_trajectory(saved: Mapping[str, Any], here: Mapping[str, Any], step: int, where: str) -> None:
    """Name what decided the steps before `step` in the checkpoint `where` and is no longer so: key, old value and new one."""
    before, now = _settings(saved, step, where), _settings(here, step, where)
    mixing = [
        build(Objective, config["objective"], where, "objective").mixes_per_micro_batch for config in (saved, here)
    ]
    if not all(mixing):  # else samples of a micro-batch draw together
        before.pop("train.micro_batch"), now.pop("train.micro_batch")
    for key in dict.fromkeys([*before, *now]):
        was, is_now = before.get(key, "unset"), now.get(key, "unset")
        if was != is_now:
            remedy = _batch_remedy(was, is_now, step, here) if key == "train.global_batch" else ""
            warn(f"{where}: {key} was {was}, now {is_now}: the run goes on, but not as it would have{remedy}")


def _settings(config: Mapping[str, Any], step: int, where: str) -> dict[str, Any]:
    train = to_dict(build(TrainConfig, config["train"], where, "train"))  # an older build's lacks what came later
    return {
        **compared_settings({**config, "train": train}),
        "train.micro_batch": train["micro_batch"],
        "train.batch_stages": [stage for stage in train["batch_stages"] if stage["from_step"] < step],
        **build(Objective, config["objective"], where, "objective").past(step),
        **past(config["data"], step),
    }


def _batch_remedy(was: int, is_now: int, step: int, here: Mapping[str, Any]) -> str:
    """How batches grow from here on: by the setting alone, the steps done would count as if they had had the new size."""
    counted = " and train.tokens" if here["train"].get("tokens") else ""
    return (
        f": the order of packs{counted} count the {step:,} steps done with {is_now} packs each; keep train.global_batch={was}, "
        f"and from here on 'train.batch_stages=[{{from_step: {step}, global_batch: {is_now}}}]'"
    )
