"""Checkpoints of a run: RUN/checkpoints/step-00000100/ and the file `latest`, which names the newest complete one.

A checkpoint is written under a temporary name, renamed when all processes have written their part, and only then named by
`latest`: it is complete or invisible. `run.json` inside says what it belongs to in plain JSON, so that a mismatch is refused
before anything is loaded. The one integer of data state is the step.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ttt_dist.config import Config, to_dict, zero_stage
from ttt_dist.data.blend import past
from ttt_dist.errors import UserError
from ttt_dist.files import atomic_write, fsync_folder, writing
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.telemetry.console import warn

if TYPE_CHECKING:
    import deepspeed

LATEST = "latest"
FACTS = "run.json"
# A change of these leaves the weights valid, but the run no longer continues what it was.
ORDER_SETTINGS = ("seed", "objective", "train.global_batch")


@dataclass(frozen=True)
class Facts:
    """What a checkpoint belongs to: everything that must agree for a resume."""

    layout: TokenLayout
    config: dict[str, Any]
    """The run's whole resolved configuration as plain values."""
    world_size: int
    zero_stage: int

    @classmethod
    def of_run(cls, config: Config, layout: TokenLayout, world_size: int) -> "Facts":
        return cls(layout, to_dict(config), world_size, zero_stage(config.deepspeed))


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of `folder` (RUN/checkpoints); None where there is none."""
    try:
        name = (folder / LATEST).read_text().strip()
    except FileNotFoundError:
        return None
    if not (folder / name / FACTS).is_file():
        raise UserError(
            f"{folder / LATEST}: names {name!r}, which is no complete checkpoint; write the name of another one into it"
        )
    return folder / name


def step_of(checkpoint: Path) -> int:
    """Updates done when `checkpoint` was written."""
    return int(_read_facts(checkpoint)["step"])


def require_resumable(checkpoint: Path, run: Facts) -> None:
    """Refuse a checkpoint of another token layout, model or process layout, with both values named; warn of lesser changes."""
    where = str(checkpoint)
    facts = _read_facts(checkpoint)
    run.layout.require_same(TokenLayout.from_dict(facts["layout"], where), where)
    saved = facts["config"]
    for name, here in run.config["model"].items():
        _require_equal(f"model.{name}", saved["model"].get(name), here, where)
    for name, here in run.config["parallel"].items():
        _require_equal(f"parallel.{name}", saved.get("parallel", {}).get(name), here, where)
    _require_equal("train.precision", saved["train"]["precision"], run.config["train"]["precision"], where)
    _require_equal("the number of processes", facts["world_size"], run.world_size, where)
    _require_equal("the ZeRO stage (deepspeed)", facts["zero_stage"], run.zero_stage, where)
    _warn_of_another_order(saved, run.config, int(facts["step"]), where)


def _warn_of_another_order(saved: dict[str, Any], here: dict[str, Any], step: int, where: str) -> None:
    """Name what decided the steps before `step` and is no longer so. What begins later may be changed at will."""
    before, now = (
        {**{key: _pick(config, key) for key in ORDER_SETTINGS}, **past(config["data"], step)}
        for config in (saved, here)
    )
    for key in dict.fromkeys([*before, *now]):
        was, is_now = before.get(key, "unset"), now.get(key, "unset")
        if was != is_now:
            warn(f"{where}: {key} was {was}, now {is_now}: the run goes on, but not as it would have")


def save(engine: "deepspeed.DeepSpeedEngine", folder: Path, step: int, run: Facts, keep_last: int) -> Path:
    """Write the state after `step` updates; collective. Returns the checkpoint's folder."""
    final = folder / f"step-{step:08d}"
    aside = folder / f".{final.name}.tmp"
    on_first_rank(lambda: _make_empty(aside))
    engine.save_checkpoint(str(folder), tag=aside.name, client_state={"step": step}, save_latest=False)
    dist.barrier()
    on_first_rank(lambda: _publish(aside, final, step, run, keep_last))
    return final


def load(engine: "deepspeed.DeepSpeedEngine", checkpoint: Path) -> int:
    """Restore weights and optimizer; collective. Returns the number of updates done. Call `require_resumable` before."""
    path, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_lr_scheduler_states=False)
    if path is None:
        raise UserError(
            f"{checkpoint}: DeepSpeed finds no weights in it; name another checkpoint in {checkpoint.parent / LATEST}"
        )
    assert state["step"] == step_of(checkpoint)
    return int(state["step"])


def on_first_rank(action: Callable[[], None]) -> None:
    """Run `action` on rank 0 while the others wait; its failure becomes everyone's, so that none is left waiting."""
    failure: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except (OSError, UserError) as error:
            failure = [error]
    dist.broadcast_object_list(failure, device=_object_device())
    if failure[0] is not None:
        raise failure[0]


def _object_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _make_empty(folder: Path) -> None:
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _publish(aside: Path, final: Path, step: int, run: Facts, keep_last: int) -> None:
    """Complete the folder written aside, give it its name, point `latest` at it, and drop what is no longer kept."""
    facts = {
        "step": step,
        "layout": run.layout.to_dict(),
        "world_size": run.world_size,
        "zero_stage": run.zero_stage,
        "config": run.config,
    }
    with atomic_write(aside / FACTS) as file:
        json.dump(facts, file, indent=1)
    with writing(final):
        if final.exists():  # left by an earlier attempt that went further than the checkpoint this run resumed from
            shutil.rmtree(final)
        os.replace(aside, final)
        fsync_folder(final.parent)
    with atomic_write(final.parent / LATEST) as file:
        file.write(final.name + "\n")
    if keep_last:
        for old in _complete(final.parent)[:-keep_last]:
            if old != final:
                shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / FACTS).is_file())


def _read_facts(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / FACTS
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); name another checkpoint in {checkpoint.parent / LATEST}"
        ) from None


def _require_equal(name: str, there: Any, here: Any, where: str) -> None:
    if there != here:
        raise UserError(
            f"{where}: {name} is {there} in the checkpoint and {here} in this run; change it back, or choose another run_dir"
        )


def _pick(values: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values
