"""What the spawned processes of test_watching run: steps whose bins, times and records come home."""

import time
from typing import Any

import torch

from tests.distributed.cases import GLOBAL_BATCH, LR, Layout, new_engine
from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from ttt_dist.sequence.batch import Batch, collate

NUM_SOURCES = 3


def own_batches(layout: Layout, step: int) -> list[Batch]:
    """This process's share of a step's packs."""
    packs, mesh, objective = global_batches(step + 1, GLOBAL_BATCH)[step], layout.mesh(), layout.config().objective
    firsts = range(mesh.data_rank * layout.micro, GLOBAL_BATCH, layout.micro * layout.dp)
    micro = layout.micro
    sources = [slot % NUM_SOURCES for slot in range(GLOBAL_BATCH)]
    return [
        collate(
            packs[first : first + micro], LAYOUT, objective, 1, [step] * micro, SEQ_LEN,
            sources[first : first + micro], NUM_SOURCES,
        )
        for first in firsts
    ]  # fmt: skip


def watched_steps(layout: Layout, num_steps: int) -> list[dict[str, Any]]:
    """Of each step: its bins of p, its seconds by phase, and those that passed on the wall."""
    from ttt_dist.training.step import train_step

    rows = []
    with new_engine(layout) as engine:
        for step in range(num_steps):
            batches = own_batches(layout, step)
            begin = time.perf_counter()
            result = train_step(engine, layout.mesh(), batches, LR)
            wall_s = time.perf_counter() - begin
            bins = [tuple(pair) for pair in result.nar_by_p]
            groups = {"sums": result.groups.sums, "units": result.groups.units}
            losses = {"losses": result.losses.by_term, "num_loss_units": result.counts.num_loss_units, **groups}
            rows.append(
                {**losses, "bins": bins, "seconds": result.times.seconds, "own_s": result.times.own_s, "wall_s": wall_s}
            )
    return rows


def record_with_a_straggler(layout: Layout, slow_rank: int, delay_s: float) -> dict[str, float]:
    """The record of a step in which one rank computes longer in its forward pass."""
    from ttt_dist.training.step import train_step
    from ttt_dist.training.step_metrics import MetricsAccumulator

    config, mesh = layout.config(), layout.mesh()
    window = MetricsAccumulator.of_run(config, LAYOUT.vocab_size)

    def linger(*_: Any) -> None:
        if mesh.rank == slow_rank:
            time.sleep(delay_s)

    with new_engine(layout) as engine:
        train_step(engine, mesh, own_batches(layout, 0), LR)  # the first one allocates
        engine.module.register_forward_pre_hook(linger)
        begin = time.perf_counter()
        result = train_step(engine, mesh, own_batches(layout, 1), LR)
        window.add(result, 0.0, time.perf_counter() - begin)
        return window.record(LR)


def measured_steps(layout: Layout, num_steps: int) -> list[tuple[float, float, float, float]]:
    """Of each step: mean square of the gradient of a micro-batch, square of the whole one, and both estimates."""
    from ttt_dist.parallel.micro_batch_norms import MicroBatchNorms
    from ttt_dist.training.noise_scale import estimates
    from ttt_dist.training.step import train_step

    rows = []
    with new_engine(layout) as engine:
        norms = MicroBatchNorms(engine.module, layout.mesh())
        for step in range(num_steps):
            train_step(engine, layout.mesh(), own_batches(layout, 2 * step), LR)  # one that is not measured
            result = train_step(engine, layout.mesh(), own_batches(layout, 2 * step + 1), LR, norms)
            found = estimates(result)
            assert result.micro_batch_square is not None and found is not None
            rows.append((result.micro_batch_square, result.grad_norm**2, *found))
    return rows


def directly(layout: Layout) -> tuple[float, float]:
    """Of the second step after a first one, in plain torch: what `measured_steps` gives first for one process."""
    from ttt_dist.model.transformer import Transformer
    from ttt_dist.parallel.gather import full_state_dict
    from ttt_dist.training.step import train_step

    with new_engine(layout) as engine:
        train_step(engine, layout.mesh(), own_batches(layout, 0), LR)
        weights = dict(full_state_dict(engine, layout.mesh(), layout.config().model, LAYOUT))
        model = Transformer.for_layout(layout.config().model, LAYOUT)
    model.load_state_dict(weights, strict=not layout.tied)  # the head is the embedding then
    batches = [batch for batch in own_batches(layout, 1) if batch.num_loss_units]
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(model(batch).loss, parameters) for batch in batches]
    flat = [torch.cat([part.flatten() for part in gradient]).double() for gradient in gradients]
    units = sum(batch.num_loss_units for batch in batches)
    alone = [
        float((g / b.num_loss_units).square().sum()) * b.num_loss_units for g, b in zip(flat, batches, strict=True)
    ]
    return sum(alone) / units, float((torch.stack(flat).sum(dim=0) / units).square().sum())
