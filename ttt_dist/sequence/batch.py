"""The Batch: everything the model and the loss need, with all randomness already in it.

torch is imported where the first batch is made: what reads settings and shards alone does without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt_dist.config.objective import Objective
from ttt_dist.sequence.corruption import Corrupted, corrupt, draw
from ttt_dist.sequence.loss_terms import TARGET_KINDS, TargetKind, term_weights
from ttt_dist.sequence.sample import TASKS, Sample, task_of
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import visible_end

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(kw_only=True)
class Batch:
    """Packs side by side. Tensors are [B, S]; weights are 0 where a position has no such target.

    The loss of a global batch is the sum over its batches of ar_weights * CE(logits, ar_targets) +
    nar_weights * CE(logits, nar_targets), and of what `term_weights` adds, divided by the sum of their `num_loss_units`.
    Targets stand at the position that predicts them: the model shifts nothing.
    """

    input_ids: Tensor
    position_ids: Tensor
    """Restart at 0 in each sample."""
    sample_ids: Tensor
    """1, 2, ... within a row; 0 is padding."""
    span_ids: Tensor
    """0 is causal; otherwise unique within a row."""
    ar_targets: Tensor
    ar_weights: Tensor
    nar_targets: Tensor
    nar_weights: Tensor
    nar_bins: Tensor
    """Bin of the masking ratio p at NAR targets, 1 to NUM_P_BINS; 0 elsewhere."""
    group_ids: Tensor
    """Whose part of the loss a position is: source of the pack x len(TASKS) + task of the sample; 0 at padding."""
    num_loss_units: float
    """This batch's part of the global number that the loss is divided by: samples, or targets (`objective.normalisation`)."""
    group_units: Sequence[float] = (0.0,) * len(TASKS)
    """The part of `num_loss_units` of each group, [sources x tasks]."""
    term_weights: dict[str, float] = field(default_factory=dict)
    """Of the terms of the loss beside the two cross-entropies, by name; those that are not there do not count."""
    target_indices: TargetIndices | None = None
    """Where the weights are not 0, found on the CPU; on a GPU looking for them would wait for the device."""

    @property
    def num_groups(self) -> int:
        return len(self.group_units)

    @property
    def micro_batches(self) -> int:
        """Itself, unless there is no loss in it."""
        return int(self.num_loss_units > 0)

    @property
    def ar_tokens(self) -> int:
        return int((self.ar_weights != 0).sum())

    @property
    def nar_tokens(self) -> int:
        return int((self.nar_weights != 0).sum())

    @property
    def useful_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.sample_ids != 0).sum())

    @property
    def visible_pairs(self) -> int:
        """Pairs of a query and a key that it sees: what attention cannot do without."""
        import torch

        index = torch.arange(self.input_ids.shape[-1], device=self.input_ids.device)
        seen = visible_end(self.sample_ids, self.span_ids) - (index - self.position_ids)  # from its sample's start on
        return int(seen[self.sample_ids != 0].sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; from pinned memory (`pinned`) without waiting for it."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        indices = None if self.target_indices is None else self.target_indices.to(device)
        return replace(self, **moved, target_indices=indices)

    def pinned(self) -> Batch:
        """The same with its targets found, in memory that a GPU reads by itself. Pinning takes long: do so ahead, in another
        thread."""
        found = TargetIndices.of(self)
        tensors: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self.tensors().items()}
        return replace(self, **tensors, target_indices=replace(found, on_device=found.on_device.pin_memory()))

    def tensors(self) -> dict[str, Tensor]:
        """Those of [B, S], by name."""
        return {name: getattr(self, name) for name in TENSORS}


TENSORS = tuple(f.name for f in fields(Batch) if f.type == "Tensor")  # types are words here: nothing is evaluated
"""Names of a batch's tensors [B, S]. Those that end in `_weights` are fp32, the others int64."""


@dataclass
class TargetIndices:
    """Positions in a flattened batch that have a weight, by kind of target: AR ones first, then NAR ones, each in order."""

    on_device: Tensor
    """int64 [N], on the batch's device."""
    on_host: dict[TargetKind, np.ndarray]
    """The same by kind, always on the CPU."""

    @classmethod
    def of(cls, batch: Batch) -> TargetIndices:
        import torch

        found = {kind: np.flatnonzero(getattr(batch, f"{kind}_weights").cpu().numpy()) for kind in TARGET_KINDS}
        return cls(torch.from_numpy(np.concatenate(list(found.values()))), found).to(batch.input_ids.device)

    def to(self, device: torch.device | str) -> TargetIndices:
        return TargetIndices(self.on_device.to(device, non_blocking=True), self.on_host)

    def within(self, tokens: slice) -> dict[TargetKind, Tensor]:
        """Positions by kind among `tokens` of the flattened batch, counted from the first of them."""
        first = tokens.start or 0
        bounds = [first, (1 << 62) if tokens.stop is None else tokens.stop]
        found: dict[TargetKind, Tensor] = {}
        begin = 0
        for kind, indices in self.on_host.items():
            low, high = np.searchsorted(indices, bounds).tolist()
            found[kind] = self.on_device[begin + low : begin + high] - first
            begin += len(indices)
        return found


def collate(
    packs: list[list[Sample]],
    layout: TokenLayout,
    objective: Objective,
    seed: int,
    epochs: list[int],
    seq_len: int,
    sources: Sequence[int] | None = None,
    num_sources: int = 1,
) -> Batch:
    """Corrupt the samples of `packs` (one epoch number each) and lay them out as a Batch of [len(packs), seq_len].

    `sources` tells of each pack which of `num_sources` it comes from; without it there is one. A pack may be empty (all
    padding). Raises ValueError where a pack is longer than seq_len.
    """
    import torch

    mix = _shared_mix(packs, objective, seed, epochs)
    rows = [
        [corrupt(sample, layout, objective, draw(sample, seed, epoch), mix) for sample in pack]
        for pack, epoch in zip(packs, epochs, strict=True)
    ]
    arrays = {
        name: np.zeros((len(packs), seq_len), dtype=np.float32 if name.endswith("_weights") else np.int64)
        for name in TENSORS
    }
    arrays["input_ids"][:] = layout.pad
    group_units = np.zeros(num_sources * len(TASKS))
    for row, (pack, parts) in enumerate(zip(packs, rows, strict=True)):
        first = (sources[row] if sources else 0) * len(TASKS)
        groups = [first + task_of(sample, layout) for sample in pack]
        _fill_row({name: array[row] for name, array in arrays.items()}, parts, groups)
        np.add.at(group_units, groups, [part.loss_denominator for part in parts])
    for kind in TARGET_KINDS:
        used = arrays[f"{kind}_targets"][arrays[f"{kind}_weights"] != 0]
        if used.size and not 0 <= used.min() <= used.max() < layout.vocab_size:
            raise ValueError(
                f"loss targets must lie in 0..{layout.vocab_size - 1}, but span {used.min()}..{used.max()}"
            )
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(
        **tensors,
        num_loss_units=float(sum(part.loss_denominator for parts in rows for part in parts)),
        group_units=group_units.tolist(),
        term_weights=term_weights(objective),
    )


def _shared_mix(packs: list[list[Sample]], objective: Objective, seed: int, epochs: list[int]) -> bool | None:
    """BANOM's choice for the whole micro-batch (that of its first sample), or None where each sample has its own."""
    if not objective.mixes_per_micro_batch:
        return None
    first = next(((pack[0], epoch) for pack, epoch in zip(packs, epochs, strict=True) if pack), None)
    return first is not None and draw(first[0], seed, first[1]).mix < objective.p_mix


def _fill_row(row: dict[str, np.ndarray], parts: list[Corrupted], groups: list[int]) -> None:
    """Write corrupted samples one after the other into a row of each tensor, [S]."""
    seq_len = len(row["input_ids"])
    start = num_spans = 0
    for number, (part, group) in enumerate(zip(parts, groups, strict=True), start=1):
        end = start + len(part.input_ids)
        if end > seq_len:
            raise ValueError(f"a pack of {end} tokens or more does not fit seq_len {seq_len}")
        for name in row.keys() - {"position_ids", "sample_ids", "span_ids", "group_ids"}:
            row[name][start:end] = getattr(part, name)
        # What a sample cannot know by itself: where it lies, and which numbers of spans are taken.
        row["position_ids"][start:end] = np.arange(end - start)
        row["sample_ids"][start:end] = number
        row["group_ids"][start:end] = group
        row["span_ids"][start:end] = np.where(part.span_ids > 0, part.span_ids + num_spans, 0)
        num_spans += int(part.span_ids.max(initial=0))
        start = end
