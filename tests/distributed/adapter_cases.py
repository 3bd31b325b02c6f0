"""What the adapter's tests look at in real engines, one process each: what DeepSpeed would do, and what we make of it."""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.distributed.cases import Layout, new_engine, run_step
from ttt_dist.parallel import deepspeed_adapter as adapter


def inductor_imported() -> bool:
    """Whether the engines that this process has made brought in what compiles."""
    return "torch._inductor.compile_fx" in sys.modules


def weights_and_fragments(layout: Layout) -> dict[str, Any]:
    """After a step: whether each weight of the forward pass is its fragment of a master, and what is covered."""
    with new_engine(layout) as engine:
        run_step(engine, layout, 0)
        parameters = dict(engine.module.named_parameters())
        covered, worst = {}, 0.0
        for name, part in adapter.fragments(engine, parameters):
            weight = parameters[name]
            if hasattr(weight, "ds_id"):
                weight.all_gather()
            master = part.master.detach().flatten()[part.offset : part.offset + part.size]
            own = weight.detach().flatten()[part.first : part.first + part.size]
            covered[name] = part.size
            worst = max(worst, float((own - master.to(own.dtype)).abs().max()))
            if hasattr(weight, "ds_id"):
                weight.partition()
        adam = adapter.inner_adam(engine)
        return {
            "optimizer": type(engine.optimizer).__name__,
            "covered": covered == {name: adapter.full_shape(p).numel() for name, p in parameters.items()},
            "worst": worst,
            "masters": all(master.dtype == torch.float32 for master in adapter.masters(engine)),
            "steps": {int(adam.state[master]["step"]) for master in adapter.masters(engine)},
        }


def refreshed(layout: Layout) -> list[float]:
    """All weights of the forward pass after the masters were set to a number."""
    with new_engine(layout) as engine:
        run_step(engine, layout, 0)
        with torch.no_grad():
            for master in adapter.masters(engine):
                master.fill_(0.25)
        adapter.refresh_model_weights(engine)
        found: set[float] = set()
        for parameter in engine.module.parameters():
            if hasattr(parameter, "ds_id"):
                parameter.all_gather()
            found |= set(parameter.detach().float().unique().tolist())
        return sorted(found)


def norms_asked(layout: Layout) -> tuple[list[float], float, float]:
    """The norms that `accepts` heard in a step that it refuses, the norm reported, and how far the weights moved."""
    heard: list[float] = []
    with new_engine(layout) as engine:
        adapter.wrap_optimizer_step(engine, lambda norm: bool(heard.append(norm)))
        before = [master.detach().clone() for master in adapter.masters(engine)]
        _, _, _, norm = run_step(engine, layout, 0)
        moved = max(float((a - b).abs().max()) for a, b in zip(adapter.masters(engine), before, strict=True))
    return heard, norm, moved


def files_written(layout: Layout, folder: str) -> tuple[list[str], list[str]]:
    """Names handed to a storage of ours in a save, and what else lies in the folder."""
    from ttt_dist.checkpoint.engine import ChecksummingEngine

    with new_engine(layout) as engine:
        run_step(engine, layout, 0)
        storage = ChecksummingEngine()
        adapter.write_through(engine, storage)
        engine.save_checkpoint(folder, tag="tag", save_latest=False)
        path, _ = engine.load_checkpoint(folder, tag="tag", load_lr_scheduler_states=False)
        assert path is not None and storage.failure is None
    written = {path.name for path in Path(folder).rglob("*") if path.is_file()}
    return sorted(storage.files), sorted(written - set(storage.files))


def allocating_step(layout: Layout) -> tuple[int, int]:
    """Adam's states that DeepSpeed leaves in a new engine where nothing is forgotten, and where it is."""
    right, adapter.forget_allocating_step = adapter.forget_allocating_step, lambda engine: None
    try:
        with new_engine(layout) as engine:
            left = len(adapter.inner_adam(engine).state)
    finally:
        adapter.forget_allocating_step = right
    with new_engine(layout) as engine:
        return left, len(adapter.inner_adam(engine).state)


def remembered_groups() -> tuple[bool, bool, int, int]:
    """Whether DeepSpeed remembers an engine's mpu before and after leaving; torch's groups before joining and after leaving."""
    from deepspeed.utils import groups as theirs

    from ttt_dist.parallel import groups

    layout = Layout(tensor=2)
    with new_engine(layout):
        remembers = theirs.mpu is not None
    forgotten = theirs.mpu is None
    all_groups = torch.distributed.distributed_c10d._world.pg_map
    before = len(all_groups)
    groups.join(layout.mesh())
    groups.leave()
    return remembers, forgotten, before, len(all_groups)


def order_of_update(layout: Layout) -> list[str]:
    """What is told in a pipeline's step, and the update, in their order."""
    from tests.distributed.watched import own_batches
    from ttt_dist.parallel.pipeline import train_pipeline

    told: list[str] = []
    with new_engine(layout) as engine:
        adapter.wrap_optimizer_step(engine, lambda norm: bool(told.append("update")))
        train_pipeline(engine, own_batches(layout, 0), 1.0, told.append)
    return told


def norm_of_deepspeeds_clipping(layout: Layout) -> float:
    """The norm that is reported where DeepSpeed clips by its own function."""
    right, adapter.keep_norm_of_clipping = adapter.keep_norm_of_clipping, lambda engine: None
    try:
        with new_engine(layout) as engine:
            return run_step(engine, layout, 0)[3]
    finally:
        adapter.keep_norm_of_clipping = right
