"""The training loss by source and by task: its terms as sums over the samples of each, so that the parts make the whole.

A part's loss is what it would be trained by alone: its sum over its own loss units. Weighted by the parts' shares of all
units, the losses of all sources, or of all tasks, add up to the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_dist.sequence.loss_terms import term_names
from ttt_dist.sequence.sample import TASKS


@dataclass(frozen=True)
class GroupLosses:
    """Sums over the samples of global batches, by source and task."""

    sums: np.ndarray
    """Of each term of the loss, not divided by any number, fp64 [terms, sources, tasks]."""
    units: np.ndarray
    """What the loss is divided by: samples or targets (`objective.normalisation`), fp64 [sources, tasks]."""

    @classmethod
    def of(cls, metric_sums: Sequence[float], group_units: Sequence[float]) -> GroupLosses:
        """From the sums of `metric_names`, which end with those of the groups."""
        num_terms, num_groups = len(term_names()), len(group_units)
        sums = np.array(metric_sums[len(metric_sums) - num_terms * num_groups :])
        return cls(sums.reshape(num_terms, -1, len(TASKS)), np.reshape(group_units, (-1, len(TASKS))))

    @classmethod
    def total(cls, steps: Sequence[GroupLosses]) -> GroupLosses:
        """Those of several steps together."""
        return cls(np.sum([step.sums for step in steps], axis=0), np.sum([step.units for step in steps], axis=0))

    def record(self, sources: Sequence[str]) -> dict[str, float]:
        """As records have them: `source_NAME_ar_loss`, `task_NAME_share` and so on, without what nothing was read of.

        A single source has none: its loss is the whole.
        """
        parts = {f"task_{name}": (self.sums[..., at].sum(1), self.units[:, at].sum()) for at, name in enumerate(TASKS)}
        if len(sources) > 1:
            parts |= {
                f"source_{name}": (self.sums[:, at].sum(1), self.units[at].sum()) for at, name in enumerate(sources)
            }
        values: dict[str, float] = {}
        for name, (sums, units) in parts.items():
            if units:
                values[f"{name}_share"] = float(units / self.units.sum())
                losses = zip(term_names(), (sums / units).tolist(), strict=True)
                values |= {f"{name}_{term}_loss": loss for term, loss in losses if loss}
        return values
