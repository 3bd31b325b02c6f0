"""How many packs each step trains on, and where in the order of packs they lie: a pure function of the settings.

The order of packs is one long row of slots (`ttt_dist.data.blend` says what stands at each). Steps take them one behind the
other, `global_batch` at a time, whose number may change at set steps; what is to be left out is cut out of the row, and what
follows moves up.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepSizes:
    """The slots of every step."""

    batches: tuple[tuple[int, int], ...]
    """(first step, packs of a step) of each stage of the batch size, in order; the first one begins at step 0."""
    skip: tuple[tuple[int, int], ...] = ()
    """(step, step): at the first, what the steps up to the second (without it) would have read is passed over; in order.
    Two that begin at one step pass over as much each."""

    @classmethod
    def of(
        cls, global_batch: int, stages: Sequence[tuple[int, int]] = (), skip: Sequence[Sequence[int]] = ()
    ) -> "StepSizes":
        """With `global_batch` packs until the first of `stages` begins."""
        return cls(((0, global_batch), *stages), tuple((first, end) for first, end in skip))

    def global_batch(self, step: int) -> int:
        """Packs of a step."""
        return self.batches[bisect_right(self.batches, step, key=lambda stage: stage[0]) - 1][1]

    def trained(self, step: int) -> int:
        """Packs trained on before `step`."""
        ends = [*(min(first, step) for first, _ in self.batches[1:]), step]
        return sum((end - min(first, step)) * size for (first, size), end in zip(self.batches, ends, strict=True))

    def first_slot(self, step: int) -> int:
        """The slot of the order at which `step` begins: packs before it, trained on or passed over."""
        passed = sum(self.trained(end) - self.trained(first) for first, end in self.skip if first <= step)
        return self.trained(step) + passed

    def step_at(self, slot: int) -> int:
        """The first step that begins at a slot or behind it."""
        return bisect_left(range(slot + 1), slot, key=self.first_slot)  # no step is empty

    def steps_of(self, num_packs: int) -> int:
        """The fewest steps that train on so many packs."""
        last, size = next(stage for stage in reversed(self.batches) if self.trained(stage[0]) <= num_packs)
        return last - (self.trained(last) - num_packs) // size
