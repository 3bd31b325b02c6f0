"""One optimizer step, and the law it keeps: the gradient is that of

    (sum of the weighted losses of the global batch) / (sum of its counts),

however the batch is split into micro-batches, accumulation steps and processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.model.loss import metric_names, p_bin_name
from ttt_dist.parallel.deepspeed_adapter import set_accumulation_steps
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.micro_batch_norms import MicroBatchNorms
from ttt_dist.parallel.zero import reported_norm, set_learning_rate
from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.corruption import NUM_P_BINS
from ttt_dist.sequence.loss_terms import TARGET_KINDS, term_names
from ttt_dist.training.group_losses import GroupLosses
from ttt_dist.training.step_timing import StepClock, StepTimes


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over the global batch, of what a `Batch` has by the same names."""

    num_loss_units: float
    """What the loss is divided by."""
    ar_tokens: float
    """Positions with an AR target."""
    nar_tokens: float
    """Positions with a NAR target."""
    useful_tokens: float
    """Tokens that are not padding."""
    visible_pairs: float
    """Pairs of a query and a key that it sees."""
    micro_batches: float
    """Those that have any loss units."""
    group_units: tuple[float, ...]
    """The part of `num_loss_units` of each group."""


class PBin(NamedTuple):
    """The NAR targets of a global batch whose masking ratio p is in one bin."""

    loss_sum: float
    """Of their cross-entropy in nats, without weights."""
    num_tokens: float


@dataclass(frozen=True)
class Losses:
    """Losses of a global batch by term; their sum is what is trained by."""

    by_term: dict[str, float]
    held_out: str = ""
    """Name of the held-out set that they are of, where a run has several."""

    @classmethod
    def of_sums(cls, sums: Mapping[str, float], num_loss_units: float, held_out: str = "") -> "Losses":
        """The terms among metric sums, over the batch's units; 0 where it has none."""
        by_term = {name: sums[name] / num_loss_units if num_loss_units else 0.0 for name in term_names()}
        return cls(by_term, held_out)

    @property
    def loss(self) -> float:
        return sum(self.by_term.values())

    def record(self, prefix: str = "") -> dict[str, float]:
        """As records have them: `loss`, `ar_loss`, `nar_loss`, and further terms where they count."""
        return {f"{prefix}loss": self.loss} | {f"{prefix}{name}_loss": value for name, value in self._counting()}

    def told(self, digits: int) -> str:
        """As the console shows them: loss 3.214 (ar 1.002, nar 2.212)."""
        terms = ", ".join(f"{name} {value:.{digits}f}" for name, value in self._counting())
        return f"loss {self.loss:.{digits}f} ({terms})"

    def _counting(self) -> list[tuple[str, float]]:
        """The terms without those that most objectives leave out."""
        return [(name, value) for name, value in self.by_term.items() if value or name in TARGET_KINDS]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did; the losses are those before the update, of the global batch."""

    losses: Losses
    grad_norm: float
    micro_batch_square: float | None
    """Square of the gradient of a micro-batch alone, mean over them by their loss units; None where it was not asked for."""
    own_sums: torch.Tensor
    """This process's part of the sums of the terms, in their order: it tells whose loss was not finite."""
    nar_by_p: list[PBin]
    groups: GroupLosses
    counts: Counts
    times: StepTimes

    @property
    def loss(self) -> float:
        return self.losses.loss


def train_step(
    engine: deepspeed.DeepSpeedEngine, mesh: Mesh, batches: Sequence[Batch], lr: float,
    norms: MicroBatchNorms | None = None, is_sample: bool = False,
) -> StepResult:  # fmt: skip
    """Run this process's micro-batches of one global batch and update the weights.

    `norms` measures the gradient of each; `is_sample` as in `StepClock`.

    Collective: every process calls it with the same number of batches.
    """
    set_accumulation_steps(engine, len(batches))
    forward_is_alone = mesh.tensor == mesh.pipeline == mesh.ulysses == 1 and engine.zero_optimization_stage() < 3
    with StepClock(engine.device, forward_is_alone, is_sample) as clock:
        counts = global_counts(batches, mesh, engine.device)
        clock.charge("data")
        # DeepSpeed averages gradients over the processes of different data or tokens: undo it.
        scale = mesh.zero_size / counts.num_loss_units if counts.num_loss_units else 0.0
        if norms is not None:
            norms.begin(_square_weights(batches, counts.num_loss_units, scale))
        set_learning_rate(engine, lr)
        if mesh.pipeline > 1:
            from ttt_dist.parallel.pipeline import train_pipeline

            sums = train_pipeline(engine, batches, scale, clock.charge)
        else:
            sums = _accumulate(engine, batches, scale, clock)
        if not mesh.is_loss_rank:
            sums.zero_()
        own_sums = sums[: len(term_names())].clone()
        square = torch.zeros(1, dtype=sums.dtype, device=sums.device) if norms is None else norms.end(sums.device)
        summed = torch.cat([sums, square])
        dist.all_reduce(summed)
        *values, total_square = summed.tolist()
        metric_sums = dict(zip(metric_names(len(counts.group_units)), values, strict=True))
        grad_norm = reported_norm(engine)
        clock.charge("optimizer")
    return StepResult(
        losses=Losses.of_sums(metric_sums, counts.num_loss_units),
        grad_norm=grad_norm,
        micro_batch_square=None if norms is None else total_square,
        own_sums=own_sums,
        nar_by_p=[
            PBin(metric_sums[f"nar_nats_{name}"], metric_sums[f"nar_tokens_{name}"])
            for name in map(p_bin_name, range(NUM_P_BINS))
        ],
        groups=GroupLosses.of(values, counts.group_units),
        counts=counts,
        times=clock.times(),
    )


def _square_weights(batches: Sequence[Batch], num_loss_units: float, scale: float) -> list[float]:
    """What makes the squares of the micro-batches' scaled gradients their mean by loss units.

    Of a micro-batch with u of U units, the gradient of its own mean loss is the scaled one / (scale u), and its weight is u / U.
    """
    units = [batch.num_loss_units for batch in batches]
    return [1.0 / (scale**2 * u * num_loss_units) if u else 0.0 for u in units]


def _accumulate(
    engine: deepspeed.DeepSpeedEngine, batches: Sequence[Batch], scale: float, clock: StepClock
) -> torch.Tensor:
    """Gradients of `scale` * loss over `batches`, and the update; this process's `LossSums.metric_sums`."""
    sums = torch.zeros(len(metric_names(batches[0].num_groups)), dtype=torch.float64, device=engine.device)
    for batch in batches:
        output = engine(batch.to(engine.device))
        sums += output.metric_sums()
        clock.charge("forward")
        # The division by accumulation steps is switched off: the global count has taken care of it.
        engine.backward(output.loss * scale, scale_wrt_gas=False)
        clock.charge("backward")
        engine.step()
        clock.charge("optimizer")
    return sums


def global_counts(batches: Sequence[Batch], mesh: Mesh, device: torch.device) -> Counts:
    """Sum the counts of all processes' batches. Must precede the first backward pass: every gradient is divided by it."""
    names = [field.name for field in fields(Counts) if field.name != "group_units"]
    rows = [[*(getattr(batch, name) for name in names), *batch.group_units] for batch in batches]
    total = torch.tensor(rows, dtype=torch.float64, device=device).sum(dim=0) * mesh.is_data_source_rank
    dist.all_reduce(total)
    values = total.tolist()
    return Counts(**dict(zip(names, values, strict=False)), group_units=tuple(values[len(names) :]))
