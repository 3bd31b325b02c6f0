"""Blends: which source is read at (step, slot), and which of its packs (rule 2: one order).

Weights are whole numbers, so a share is exact on any machine. The m-th slot of a stage is the first source's where
floor(m w / W) rises after it, W being the sum of all weights; the slots that are left are shared out among the remaining
sources in the same way. So after any number of slots each source has had its share to within a slot per source, and the
slot, the source and how often it was read before are found at once, from nothing but the step.

Within a step the slots are first permuted: otherwise a source of weight 1/2 would be that of every second slot, which is
one rank's of two.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ttt_dist.data.sampler import PackOrder, permutation_keys, permute
from ttt_dist.data.step_sizes import StepSizes


class SampleIndex(NamedTuple):
    """What stands at a slot of a step."""

    source: str
    pack: int
    epoch: int
    """How often the source has been read whole; it also seeds the pack's noise."""


class Order(Protocol):
    """What is read when: a pure function of the seed and the blend."""

    sizes: StepSizes

    def sample_at(self, step: int, slot: int) -> SampleIndex:
        """What slot 0..global_batch-1 of a step reads."""

    def counts(self, step: int) -> dict[str, int]:
        """Packs read of each source before `step` begins."""


class SingleSource(Order):
    """The order of a run that is no blend."""

    def __init__(self, name: str, num_packs: int, seed: int, sizes: StepSizes) -> None:
        self.name, self.sizes = name, sizes
        self.packs = PackOrder(num_packs, seed)

    def sample_at(self, step: int, slot: int) -> SampleIndex:
        assert 0 <= slot < self.sizes.global_batch(step)
        return SampleIndex(self.name, *self.packs.nth(self.sizes.first_slot(step) + slot))

    def counts(self, step: int) -> dict[str, int]:
        return {self.name: self.sizes.first_slot(step)}


@dataclass(frozen=True)
class Stage:
    """Steps that share the slots out by the same weights."""

    from_step: int
    weights: dict[str, int]
    """Positive whole numbers without a common divisor, in order of the sources' names; the others have weight 0."""

    @classmethod
    def of(cls, from_step: int, weights: Mapping[str, Fraction]) -> "Stage":
        """The stage with these weights, of which one at least is above 0."""
        read = {name: weights[name] for name in sorted(weights) if weights[name]}
        scale = math.lcm(*(weight.denominator for weight in read.values()))
        whole = {name: int(weight * scale) for name, weight in read.items()}
        divisor = math.gcd(*whole.values())
        return cls(from_step, {name: weight // divisor for name, weight in whole.items()})

    @property
    def shares(self) -> dict[str, Fraction]:
        """Share of the slots, by source."""
        total = sum(self.weights.values())
        return {name: Fraction(weight, total) for name, weight in self.weights.items()}

    def pick(self, slot: int) -> tuple[str, int]:
        """The source of a slot, counted from the beginning of the stage, and the slots that it had in the stage before."""
        # Of the first n slots the first source has floor(n w / W): a slot is its own where that number rises behind it, and
        # the number itself is how many it had before. No slot is gone through, so step 10^9 is found as fast as step 0.
        # A slot that is not its own is renumbered among those that it left, and these are shared out among the others by
        # what is left of the weights. The last source has w = W, and takes every slot that comes to it.
        total = sum(self.weights.values())
        for name, weight in self.weights.items():
            before = slot * weight // total
            if (slot + 1) * weight // total > before:
                return name, before
            slot, total = slot - before, total - weight
        raise AssertionError("the last source takes what is left")

    def counts(self, num_slots: int) -> dict[str, int]:
        """How many of the first `num_slots` slots of the stage each source has: `pick`'s numbers without its question."""
        counts, total = {}, sum(self.weights.values())
        for name, weight in self.weights.items():
            counts[name] = num_slots * weight // total
            num_slots, total = num_slots - counts[name], total - weight
        return counts


class BlendOrder(Order):
    """The order of a blend: `num_packs` of each source by name, and stages of which the first begins at step 0."""

    def __init__(self, num_packs: Mapping[str, int], stages: Sequence[Stage], seed: int, sizes: StepSizes) -> None:
        assert stages[0].from_step == 0
        assert all(before.from_step < after.from_step for before, after in pairwise(stages))
        self.stages, self.seed, self.sizes = stages, seed, sizes
        self.packs = {name: PackOrder(size, seed, name) for name, size in num_packs.items()}
        self._starts = [sizes.trained(stage.from_step) for stage in stages]
        """Slot at which each stage begins."""
        self._before = [dict.fromkeys(num_packs, 0)]
        """Packs read of each source before each stage begins."""
        for start in self._starts[1:]:
            self._before.append(self._counts(start, len(self._before) - 1))

    def sample_at(self, step: int, slot: int) -> SampleIndex:
        size = self.sizes.global_batch(step)
        assert 0 <= slot < size
        # Permuted within the step alone: whose slots these are together, and with them `counts`, stays what it was.
        permuted = permute(slot, size, permutation_keys("slots", self.seed, step))
        number, stage = self._place(self.sizes.first_slot(step) + permuted)
        # A source goes on where the stage before left it: stages change how often it is read, not its order nor its epochs.
        name, before = self.stages[stage].pick(number)
        return SampleIndex(name, *self.packs[name].nth(self._before[stage][name] + before))

    def counts(self, step: int) -> dict[str, int]:
        slot = self.sizes.first_slot(step)
        return self._counts(slot, self._place(slot)[1])

    def _place(self, slot: int) -> tuple[int, int]:
        """A slot as it is counted from the beginning of its stage, and the stage's number."""
        stage = bisect_right(self._starts, slot) - 1
        return slot - self._starts[stage], stage

    def _counts(self, slot: int, stage: int) -> dict[str, int]:
        """Packs read of each source before a slot that lies in the stage, or at its end."""
        read = self.stages[stage].counts(slot - self._starts[stage])
        return {name: count + read.get(name, 0) for name, count in self._before[stage].items()}


def exact(number: float) -> Fraction:
    """The decimal that a setting was written as: 0.3 is 3/10, not the nearest binary fraction."""
    return Fraction(repr(number))


def past(data: Mapping[str, Any], step: int) -> dict[str, str]:
    """Of the settings under `data`, as plain values, those that decide what is read before `step`, by their keys.

    Equal for two runs that read the same until then: weights become shares, sources and stages to come are left out.
    """
    blend, amounts = data.get("blend") or {}, {}
    kind = "epochs" if any(source["epochs"] is not None for source in blend.values()) else "weight"
    if blend:
        amounts["data.blend"] = {name: source[kind] for name, source in blend.items()}
    passed_over = [list(steps) for steps in data.get("skip") or [] if steps[0] < step]
    moved_up = sum(end - first for first, end in passed_over)  # by which stages begin earlier
    for number, stage in enumerate(data.get("stages") or []):
        if stage["from_step"] < step + moved_up:
            amounts[f"data.stages.{number} from step {stage['from_step']}"] = stage["weights"]
    settings = {"data.train": data["train"]} if data["train"] else {}
    if passed_over:
        settings["data.skip"] = str(passed_over)
    for key, weights in amounts.items():
        shares = Stage.of(0, {name: exact(float(weight)) for name, weight in weights.items()}).shares
        settings[key] = ", ".join(f"{name} {share} ({blend[name]['shard']})" for name, share in shares.items())
    if "data.blend" in settings and kind == "epochs":
        settings["data.blend"] += " by epochs"
    return settings
