"""What the spawned processes of test_watching run: steps whose bins, times and records come home."""

import time
from typing import Any

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
