"""What the spawned processes of test_suspect_step run: a step that is skipped for some reason, computed again, and the one after it."""

from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from tests.distributed.cases import GLOBAL_BATCH, LR, Layout, all_weights, new_engine
from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from ttt_dist.config.run import GuardConfig
from ttt_dist.sequence.batch import Batch, collate

BAD_RANK, BAD_DATA = 1, 0
COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")


def suspect(layout: Layout, fault: str, recompute: bool) -> dict[str, Any]:
    """Three steps. In the second, by `fault`: "device": gradients of BAD_RANK are not finite, whatever it reads; "data":
    the weights of packs of data rank BAD_DATA are not; "spike": nothing is wrong, but the guard takes it for a spike; "loss":
    and BAD_RANK had another loss when it did.
    """
    from ttt_dist.parallel.deepspeed_adapter import wrap_optimizer_step
    from ttt_dist.training.skip_step import SkipStep
    from ttt_dist.training.step import train_step
    from ttt_dist.training.suspect_step import compute_again

    mesh, guard = layout.mesh(), SkipStep(GuardConfig(), {"norms": [1e-6] * 16})
    with new_engine(layout) as engine:
        wrap_optimizer_step(engine, guard.accepts)

        def batches_of(step: int, data_rank: int) -> list[Batch]:
            return batches(layout, step, data_rank, hurt=fault == "data" and step == 1 and data_rank == BAD_DATA)

        trainer: Any = SimpleNamespace(
            config=layout.config(), mesh=mesh, engine=engine, guard=guard, learning_rate=lambda step: LR,
            loader=SimpleNamespace(batches_of=batches_of), watchdog=SimpleNamespace(mark=lambda *_: None),
        )  # fmt: skip
        told: dict[str, Any] = {"losses": []}
        for step in range(3):
            guard.config.spike_factor = 2.0 if fault in ("spike", "loss") and step == 1 else 0.0
            hook = None
            if fault == "device" and step == 1 and dist.get_rank() == BAD_RANK:
                parameter = next(p for p in engine.module.parameters() if p.requires_grad)
                hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
            result = train_step(engine, mesh, batches_of(step, mesh.data_rank), LR)
            if fault == "loss" and step == 1 and dist.get_rank() == BAD_RANK:
                result.own_sums.mul_(float("nan"))
            told["losses"].append(result.loss)
            if guard.end_step(result.grad_norm) and recompute:
                found = compute_again(trainer, step + 1, result)
                told |= {"kind": found.kind, "ranks": found.ranks, "told": found.told}
            if hook is not None:
                hook.remove()
        told["counters"] = [getattr(engine, name) for name in COUNTERS]
        told["weights"] = {name: weight.tolist() for name, weight in all_weights(engine, layout).items()}
        return told | {"skipped": guard.skipped, "state": guard.state}


def batches(layout: Layout, step: int, data_rank: int, hurt: bool) -> list[Batch]:
    """The micro-batches of a data rank."""
    packs, objective = global_batches(step + 1, GLOBAL_BATCH)[step], layout.config().objective
    firsts = range(data_rank * layout.micro, GLOBAL_BATCH, layout.micro * layout.dp)
    made = [
        collate(packs[first : first + layout.micro], LAYOUT, objective, 1, [step] * layout.micro, SEQ_LEN)
        for first in firsts
    ]
    if hurt:
        made[0].ar_weights *= float("nan")
        made[0].nar_weights *= float("nan")
    return made
