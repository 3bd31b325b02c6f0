"""One optimizer step, and the law it keeps: the gradient is that of

    (sum of the weighted losses of the global batch) / (sum of its counts),

however the batch is split into micro-batches, accumulation steps and processes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.batch import Batch
from ttt_dist.training.engine import reported_norm, set_learning_rate


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


@dataclass(frozen=True)
class StepResult:
    """What one step did; the losses are those before the update, of the global batch."""

    loss: float
    ar_loss: float
    nar_loss: float
    grad_norm: float
    counts: Counts
    forward_backward_s: float
    optimizer_s: float


def train_step(engine: deepspeed.DeepSpeedEngine, mesh: Mesh, batches: Sequence[Batch], lr: float) -> StepResult:
    """Run this process's micro-batches of one global batch and update the weights.

    Collective: every process calls it with the same number of batches.
    """
    assert len(batches) == engine.gradient_accumulation_steps()
    start = time.perf_counter()
    counts = global_counts(batches, mesh, engine.device)
    # DeepSpeed averages gradients over the processes of different data or tokens: undo it.
    scale = mesh.data * mesh.ulysses / counts.count if counts.count else 0.0
    set_learning_rate(engine, lr)
    if mesh.pipeline > 1:
        from ttt_dist.parallel.pipeline import train_pipeline

        sums, backward_end = train_pipeline(engine, batches, scale), time.perf_counter()
    else:
        sums, backward_end = _accumulate(engine, batches, scale)
    if not mesh.counts_loss:
        sums.zero_()
    dist.all_reduce(sums)
    ar_loss, nar_loss = (sums / counts.count).tolist() if counts.count else (0.0, 0.0)
    return StepResult(
        loss=ar_loss + nar_loss,
        ar_loss=ar_loss,
        nar_loss=nar_loss,
        grad_norm=reported_norm(engine),
        counts=counts,
        forward_backward_s=backward_end - start,
        optimizer_s=_now(engine.device) - backward_end,
    )


def _accumulate(
    engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch], scale: float
) -> tuple[torch.Tensor, float]:
    """Gradients of `scale` * loss over `batches`, and the update; AR and NAR sums, and when the last backward ended."""
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        output = engine(batch.to(engine.device))
        # The division by accumulation steps is switched off: the global count has taken care of it.
        engine.backward(output.loss * scale, scale_wrt_gas=False)
        sums += torch.stack([output.ar_sum, output.nar_sum])
        if engine.is_gradient_accumulation_boundary():
            backward_end = _now(engine.device)
        engine.step()
    return sums, backward_end


def global_counts(batches: Sequence[Batch], mesh: Mesh, device: torch.device) -> Counts:
    """Sum the counts of all processes' batches. Must precede the first backward pass: every gradient is divided by it."""
    rows = [(batch.count, batch.ar_tokens, batch.nar_tokens, batch.useful_tokens) for batch in batches]
    total = torch.tensor(rows, dtype=torch.float64, device=device).sum(dim=0) * mesh.counts_batch
    dist.all_reduce(total)
    return Counts(*total.tolist())


def _now(device: torch.device) -> float:
    """Seconds, with the device's queued work done, so that a phase is charged with its own work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
