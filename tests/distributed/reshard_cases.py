"""What the processes of the resharding tests run: train, save as DeepSpeed does, and go on; or go on from what was saved."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.cases import Layout, new_engine, run_step
from tests.distributed.random_packs import LAYOUT
from ttt_dist.checkpoint import manager
from ttt_dist.config.run import CheckpointConfig

Record = list[tuple[float, float, float, float]]


def train_and_save(layout: Layout, folder: Path, before: int, after: int) -> Record:
    """Save in `folder` after `before` steps; the figures of the steps after it."""
    metadata = manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, dist.get_world_size())
    with new_engine(layout) as engine:
        for step in range(before):
            run_step(engine, layout, step)
        manager.save(engine, folder, before, metadata, {"skipped": 0}, CheckpointConfig())
        return [run_step(engine, layout, step) for step in range(before, before + after)]


def go_on(layout: Layout, folder: Path, before: int, after: int) -> Record:
    """The figures of the same steps, from a checkpoint of any layout and form."""
    from ttt_dist.checkpoint.universal import load_universal

    with new_engine(layout) as engine:
        load_universal(engine, layout.mesh(), layout.config().model, LAYOUT, folder)
        return [run_step(engine, layout, step) for step in range(before, before + after)]


def own_state(before: int, folder: Path) -> dict[tuple[str, str], Any]:
    """What one process without ZeRO has of each weight after `before` steps, and saves in `folder`."""
    layout = Layout()
    metadata = manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, dist.get_world_size())
    with new_engine(layout) as engine:
        for step in range(before):
            run_step(engine, layout, step)
        manager.save(engine, folder, before, metadata, {}, CheckpointConfig())
        found = {}
        for name, parameter in engine.module.named_parameters():
            found[name, "weights"] = parameter.detach().numpy().copy()
            for key in ("exp_avg", "exp_avg_sq"):
                found[name, key] = engine.optimizer.state[parameter][key].numpy().copy()
        return found


def failure_on_one_rank(layout: Layout, folder: Path) -> str:
    """What each process is told where one of them cannot read its part."""
    from ttt_dist.checkpoint import optimizer_state
    from ttt_dist.checkpoint.universal import load_universal
    from ttt_dist.util.errors import UserError

    def refuse(*_: object) -> None:
        raise UserError("a disk failed here")

    right = optimizer_state.load_optimizer_state
    if dist.get_rank() == 1:
        optimizer_state.load_optimizer_state = refuse  # type: ignore[assignment]
    try:
        with new_engine(layout) as engine:
            load_universal(engine, layout.mesh(), layout.config().model, LAYOUT, folder)
    except UserError as error:
        return str(error)
    finally:
        optimizer_state.load_optimizer_state = right
    return ""


def rounding(layout: Layout, folder: Path) -> float:
    """Largest difference of the forward pass's weights to the fp32 ones rounded, after a load."""
    from deepspeed.utils import safe_get_full_fp32_param

    from ttt_dist.checkpoint.universal import load_universal

    with new_engine(layout) as engine:
        load_universal(engine, layout.mesh(), layout.config().model, LAYOUT, folder)
        worst = 0.0
        for parameter in engine.module.parameters():
            master = safe_get_full_fp32_param(parameter)
            if hasattr(parameter, "ds_id"):
                parameter.all_gather()
            worst = max(worst, float((parameter.detach() - master.to(parameter.dtype)).abs().max()))
        result = torch.tensor(worst)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return float(result)
