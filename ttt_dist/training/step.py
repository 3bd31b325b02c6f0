"""One optimizer step, and the law it keeps: the gradient is that of

    (sum of the weighted losses of the global batch) / (sum of its counts),

however the batch is split into micro-batches, accumulation steps and processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.model.loss import NUM_FIGURES
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.zero import reported_norm, set_learning_rate
from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.corruption import NUM_P_BINS
from ttt_dist.training.step_timing import StepClock, StepTimes


@dataclass(frozen=True)
class Counts:
    """Sums over the global batch."""

    count: float
    """What the loss is divided by."""
    ar_tokens: float
    """Positions with an AR target."""
    nar_tokens: float
    """Positions with a NAR target."""
    useful_tokens: float
    """Tokens that are not padding."""
    visible_pairs: float
    """Pairs of a query and a key that it sees."""


class PBin(NamedTuple):
    """The NAR targets of a global batch whose masking ratio p is in one bin."""

    loss_sum: float
    """Of their cross-entropy in nats, without weights."""
    num_tokens: float


@dataclass(frozen=True)
class StepResult:
    """What one step did; the losses are those before the update, of the global batch."""

    loss: float
    ar_loss: float
    nar_loss: float
    grad_norm: float
    own_sums: torch.Tensor
    """This process's part of the AR and NAR sums, [2]: it tells whose loss was not finite."""
    nar_by_p: list[PBin]
    counts: Counts
    times: StepTimes


def train_step(engine: deepspeed.DeepSpeedEngine, mesh: Mesh, batches: Sequence[Batch], lr: float) -> StepResult:
    """Run this process's micro-batches of one global batch and update the weights.

    Collective: every process calls it with the same number of batches.
    """
    assert len(batches) == engine.gradient_accumulation_steps()
    forward_is_alone = mesh.tensor == mesh.pipeline == mesh.ulysses == 1 and engine.zero_optimization_stage() < 3
    with StepClock(engine.device, forward_is_alone) as clock:
        counts = global_counts(batches, mesh, engine.device)
        clock.charge("data")
        # DeepSpeed averages gradients over the processes of different data or tokens: undo it.
        scale = mesh.zero_size / counts.count if counts.count else 0.0
        set_learning_rate(engine, lr)
        if mesh.pipeline > 1:
            from ttt_dist.parallel.pipeline import train_pipeline

            sums = train_pipeline(engine, batches, scale, clock.charge)
        else:
            sums = _accumulate(engine, batches, scale, clock)
        if not mesh.is_loss_rank:
            sums.zero_()
        own_sums = sums[:2].clone()
        dist.all_reduce(sums)
        ar_sum, nar_sum, *by_p = sums.tolist()
        ar_loss, nar_loss = (ar_sum / counts.count, nar_sum / counts.count) if counts.count else (0.0, 0.0)
        grad_norm = reported_norm(engine)
        clock.charge("optimizer")
    return StepResult(
        loss=ar_loss + nar_loss,
        ar_loss=ar_loss,
        nar_loss=nar_loss,
        grad_norm=grad_norm,
        own_sums=own_sums,
        nar_by_p=[PBin(*pair) for pair in zip(by_p[:NUM_P_BINS], by_p[NUM_P_BINS:], strict=True)],
        counts=counts,
        times=clock.times(),
    )


def _accumulate(
    engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch], scale: float, clock: StepClock
) -> torch.Tensor:
    """Gradients of `scale` * loss over `batches`, and the update; this process's `LossSums.figures`."""
    sums = torch.zeros(NUM_FIGURES, dtype=torch.float64, device=engine.device)
    for batch in batches:
        output = engine(batch.to(engine.device))
        sums += output.figures()
        clock.charge("forward")
        # The division by accumulation steps is switched off: the global count has taken care of it.
        engine.backward(output.loss * scale, scale_wrt_gas=False)
        clock.charge("backward")
        engine.step()
        clock.charge("optimizer")
    return sums


def global_counts(batches: Sequence[Batch], mesh: Mesh, device: torch.device) -> Counts:
    """Sum the counts of all processes' batches. Must precede the first backward pass: every gradient is divided by it."""
    rows = [
        (batch.count, batch.ar_tokens, batch.nar_tokens, batch.useful_tokens, batch.visible_pairs) for batch in batches
    ]
    total = torch.tensor(rows, dtype=torch.float64, device=device).sum(dim=0) * mesh.is_data_source_rank
    dist.all_reduce(total)
    return Counts(*total.tolist())
