"""The terms of the loss by name. What is trained by, summed over processes, recorded and shown goes by this table.

`ar` and `nar` are cross-entropies, weighted by the batch. A further term is a row: a function of what the head says of a
target (its cross-entropy, and the logarithm of the sum of exponentials of all logits there), which keeps the targets'
weights, times a weight of its own by the objective's settings. No torch is needed here: a term computes with what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ttt_dist.config.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

TargetKind = Literal["ar", "nar"]
TARGET_KINDS: tuple[TargetKind, ...] = ("ar", "nar")
"""Kinds of targets that a batch has: `ar_targets` with `ar_weights`, and so on."""


@dataclass(frozen=True)
class LossTerm:
    """A term beside the cross-entropies."""

    targets: TargetKind
    """At which targets it counts."""
    value: Callable[[Tensor, Tensor], Tensor]
    """Of cross-entropies [N] in nats and logarithms of the sums of exponentials [N], fp32: what each target adds, [N]."""
    weight: Callable[[Objective], float]
    """How much, by the objective of the step; 0: the term is not computed."""


MORE_TERMS: dict[str, LossTerm] = {
    "z": LossTerm("ar", lambda nats, log_sums: log_sums**2, lambda objective: objective.z_loss),
}
"""By name; a record has `{name}_loss` where the term counts."""


def term_names() -> list[str]:
    """All terms, in the order in which they are summed."""
    return [*TARGET_KINDS, *MORE_TERMS]


def term_weights(objective: Objective) -> dict[str, float]:
    """Weights of the terms beside the cross-entropies that count in this objective."""
    weights = {name: term.weight(objective) for name, term in MORE_TERMS.items()}
    return {name: weight for name, weight in weights.items() if weight}
