"""A suspect step computed again before it is blamed on its data: data that hurts does so on every device, a bad device alone.

Each process computes its micro-batches once more, then those of the next data rank. What is compared is a process's own: its part
of the loss, and the norm of its gradients before they are summed over processes. The run is left as it was: no update is
applied meanwhile, and as all noise is in the batches, the same packs give the same figures.

All processes of a tensor-parallel, Ulysses or pipeline group have part in the same packs, and hand each other what is not
finite: of a bad device the whole group may be named. What ZeRO 3 gathers wrongly is wrong on every rank, and taken for data.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from ttt_dist.checkpoint.manager import gather
from ttt_dist.parallel.deepspeed_adapter import steps_not_counted
from ttt_dist.training.step import StepResult, train_step

if TYPE_CHECKING:
    from ttt_dist.training.loop import Trainer

# Devices of other makes, and kernels chosen by speed, round otherwise. What makes a step suspect is not of that size.
TOLERANCE = 0.05
MOST_TOLD = 4  # ranks whose figures a line has; the diary has all


@dataclass(frozen=True)
class Figures:
    """What one process made of some packs."""

    rank: int
    host: str
    packs_of: int
    """The rank whose packs they are."""
    loss: float
    """Its part of the sum, in nats; 0 where another process of the group counts it."""
    grad_norm: float
    """Of this process's own gradients, over all micro-batches."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}) has loss sum {self.loss:.6g}, gradient norm {self.grad_norm:.6g}"

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: str(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """What a suspect step comes from."""

    kind: Literal["data", "device", "unclear"]
    ranks: list[int]
    """data: whose packs; device: whose figures differ from those of others, or from their own."""
    told: str
    figures: list[Figures]
    """Those that it rests on."""

    @property
    def record(self) -> dict[str, Any]:
        """As the diary has it."""
        return {"kind": self.kind, "ranks": self.ranks, "figures": [one.record for one in self.figures]}


def compute_again(trainer: Trainer, step: int, result: StepResult) -> Verdict:
    """Why `step`, which gave `result` and was not applied, is suspect; the same on all ranks. Collective, two steps long."""
    again, norm = _figures(trainer, step, shift=0)
    elsewhere, _ = _figures(trainer, step, shift=1) if trainer.mesh.data > 1 else (None, norm)
    rows = gather((float(result.own_sums.sum()), again, elsewhere))
    first, here, there = zip(*rows, strict=True)
    return judge(first, here, [one for one in there if one is not None], norm, trainer.guard.is_suspect(norm))


def judge(
    first: Sequence[float], again: Sequence[Figures], elsewhere: Sequence[Figures], norm: float, is_suspect: bool
) -> Verdict:
    """The verdict by the parts of the loss of each rank in the step itself, by the figures of each when it computed its packs
    again, and by those of the same packs on other ranks (none where there is no other); `norm` is the whole gradient's, again."""
    computed = {one.packs_of: one for one in elsewhere}
    unlike = [(here, loss) for loss, here in zip(first, again, strict=True) if _differ(loss, here.loss)]
    pairs = [pair for here in again if here.rank in computed and (pair := _differing(here, computed[here.rank]))]
    if not unlike and not pairs:
        return _without_difference(again, norm, is_suspect, bool(computed))
    ranks = {here.rank for here, _ in unlike} | {wrong.rank for wrong, _ in pairs}
    told = [f"{here}, and had loss sum {loss:.6g} before" for here, loss in unlike]
    told += [f"{wrong} where {right}" for wrong, right in pairs]
    figures = [here for here, _ in unlike] + [one for pair in pairs for one in pair]
    return Verdict("device", sorted(ranks), f"device: {'; '.join(told[:MOST_TOLD])}", figures)


def _without_difference(again: Sequence[Figures], norm: float, is_suspect: bool, was_moved: bool) -> Verdict:
    """The verdict where all ranks agree; `was_moved`: others than those that had the packs were asked too."""
    if not is_suspect:
        told = (
            f"no rank's figures differ, and the gradient norm is {norm:.6g} now: a device or a link, and none to name"
        )
        return Verdict("unclear", [], told, [])
    hurt = [one for one in again if not one.is_finite]
    if not hurt and not math.isfinite(norm):
        return Verdict("unclear", [], "all ranks' own figures are finite, the sum of their gradients is not", [])
    hurt = hurt or [max(again, key=lambda one: one.grad_norm)]
    where = "on another rank too: data" if was_moved else "again, and no other rank to ask: data, or a device"
    if was_moved and len(hurt) == len(again):
        where = "on other ranks too, of all packs: weights that have diverged, rather than data"
    told = f"the same figures {where}: {'; '.join(map(str, hurt[:MOST_TOLD]))}"
    return Verdict("data", [one.rank for one in hurt], told, hurt)


def _differing(one: Figures, other: Figures) -> tuple[Figures, Figures] | None:
    """Of two for the same packs the one that makes a step suspect, then the other; None where they are alike."""
    for mine, theirs in ((one.grad_norm, other.grad_norm), (one.loss, other.loss)):
        if _differ(mine, theirs):
            return (one, other) if _size(mine) > _size(theirs) else (other, one)
    return None


def _differ(a: float, b: float) -> bool:
    is_bad = not math.isfinite(a) and not math.isfinite(b)
    return not is_bad and not math.isclose(a, b, rel_tol=TOLERANCE)


def _size(value: float) -> float:
    return abs(value) if math.isfinite(value) else math.inf


def _figures(trainer: Trainer, step: int, shift: int) -> tuple[Figures, float]:
    """This process's figures of the packs of the data rank `shift` further on, and the norm of the whole gradient."""
    mesh, guard = trainer.mesh, trainer.guard
    trainer.watchdog.mark(step, "computing it again", trainer.config.guard.step_timeout)
    batches = trainer.loader.batches_of(step - 1, (mesh.data_rank + shift) % mesh.data)
    with guard.refusing(), steps_not_counted(trainer.engine), _own_gradients(trainer.engine.module) as square:
        result = train_step(trainer.engine, mesh, batches, trainer.learning_rate(step))
    loss, grad_norm = float(result.own_sums.sum()), math.sqrt(float(square))
    return Figures(mesh.rank, socket.gethostname(), mesh.peer(shift), loss, grad_norm), result.grad_norm


@contextmanager
def _own_gradients(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The square of the norm of all gradients inside, as they come out of each backward pass of this process."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    square = torch.zeros((), dtype=torch.float64, device=parameters[0].device)

    def add(gradient: torch.Tensor) -> None:
        square.add_(torch.linalg.vector_norm(gradient, dtype=torch.float64) ** 2)

    hooks = [parameter.register_hook(add) for parameter in parameters]
    try:
        yield square
    finally:
        for hook in hooks:
            hook.remove()
