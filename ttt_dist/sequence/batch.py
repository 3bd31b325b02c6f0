"""The Batch: everything the model and the loss need, with all randomness already in it.

torch is imported where the first batch is made: what reads settings and shards alone does without it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from ttt_dist.config.objective import Objective
from ttt_dist.sequence.corruption import Corrupted, corrupt, draw
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import visible_end

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class Batch:
    """Packs side by side. Tensors are [B, S]; weights are 0 where a position has no such target.

    The loss of a global batch is the sum over its batches of ar_weights * CE(logits, ar_targets) +
    nar_weights * CE(logits, nar_targets), divided by the sum of their `count`s. Targets stand at the position that
    predicts them: the model shifts nothing.
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
    count: float
    """This batch's part of the global count that the loss is divided by."""
    places: LossPlaces | None = None
    """Where the weights are not 0, found on the CPU; on a GPU counting them would wait for the device."""

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

        place = torch.arange(self.input_ids.shape[-1], device=self.input_ids.device)
        seen = visible_end(self.sample_ids, self.span_ids) - (place - self.position_ids)  # from its sample's start on
        return int(seen[self.sample_ids != 0].sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; from pinned memory (`pinned`) without waiting for it."""
        places = None if self.places is None else self.places.to(device)
        return Batch(
            **{name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()},
            count=self.count,
            places=places,
        )

    def pinned(self) -> Batch:
        """The same with `places`, in memory that a GPU reads by itself. Pinning takes long: do so ahead, in another thread."""
        places = LossPlaces.of(self)
        tensors = {name: tensor.pin_memory() for name, tensor in self.tensors().items()}
        return Batch(**tensors, count=self.count, places=LossPlaces(places.index.pin_memory(), places.ar, places.nar))

    def tensors(self) -> dict[str, Tensor]:
        """Those of [B, S], by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("count", "places")}


@dataclass
class LossPlaces:
    """Positions in a flattened batch that have a weight: AR ones first, then NAR ones, each in order."""

    index: Tensor
    """int64 [N], on the batch's device."""
    ar: np.ndarray
    """The AR part again, always on the CPU."""
    nar: np.ndarray

    @classmethod
    def of(cls, batch: Batch) -> LossPlaces:
        import torch

        ar, nar = (np.flatnonzero(w.cpu().numpy()) for w in (batch.ar_weights, batch.nar_weights))
        return cls(torch.from_numpy(np.concatenate([ar, nar])), ar, nar).to(batch.input_ids.device)

    def to(self, device: torch.device | str) -> LossPlaces:
        return LossPlaces(self.index.to(device, non_blocking=True), self.ar, self.nar)

    def within(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """AR and NAR positions among `tokens` of the flattened batch, counted from the first of them."""
        first = tokens.start or 0
        bounds = [first, (1 << 62) if tokens.stop is None else tokens.stop]
        (ar_low, ar_high), (nar_low, nar_high) = (
            np.searchsorted(part, bounds).tolist() for part in (self.ar, self.nar)
        )
        ar, nar = self.index.tensor_split([len(self.ar)])
        return ar[ar_low:ar_high] - first, nar[nar_low:nar_high] - first


def collate(
    packs: list[list[Sample]], layout: TokenLayout, objective: Objective, seed: int, epochs: list[int], seq_len: int
) -> Batch:
    """Corrupt the samples of `packs` (one epoch number each) and lay them out as a Batch of [len(packs), seq_len].

    A pack may be empty (all padding). Raises ValueError where a pack is longer than seq_len.
    """
    import torch

    mix = _shared_mix(packs, objective, seed, epochs)
    rows = [
        [corrupt(sample, layout, objective, draw(sample, seed, epoch), mix) for sample in pack]
        for pack, epoch in zip(packs, epochs, strict=True)
    ]
    integers = np.zeros((7, len(packs), seq_len), dtype=np.int64)
    integers[0] = layout.pad
    weights = np.zeros((2, len(packs), seq_len), dtype=np.float32)
    for row, parts in enumerate(rows):
        _fill_row(integers[:, row], weights[:, row], parts)
    for targets, kind in ((integers[4], weights[0]), (integers[5], weights[1])):
        used = targets[kind != 0]
        if used.size and not 0 <= used.min() <= used.max() < layout.vocab_size:
            raise ValueError(
                f"loss targets must lie in 0..{layout.vocab_size - 1}, but span {used.min()}..{used.max()}"
            )
    names = ("input_ids", "position_ids", "sample_ids", "span_ids", "ar_targets", "nar_targets", "nar_bins")
    tensors = {name: torch.from_numpy(array) for name, array in zip(names, integers, strict=True)}
    tensors |= {"ar_weights": torch.from_numpy(weights[0]), "nar_weights": torch.from_numpy(weights[1])}
    count = float(sum(part.loss_denominator for parts in rows for part in parts))
    return Batch(**tensors, count=count, places=None)


def _shared_mix(packs: list[list[Sample]], objective: Objective, seed: int, epochs: list[int]) -> bool | None:
    """BANOM's choice for the whole micro-batch (that of its first sample), or None where each sample has its own."""
    if not objective.mixes_per_micro_batch:
        return None
    first = next(((pack[0], epoch) for pack, epoch in zip(packs, epochs, strict=True) if pack), None)
    return first is not None and draw(first[0], seed, first[1]).mix < objective.p_mix


def _fill_row(integers: np.ndarray, weights: np.ndarray, parts: list[Corrupted]) -> None:
    """Write corrupted samples one after the other into integers [7, S] and weights [2, S]."""
    start = num_spans = 0
    for number, part in enumerate(parts, start=1):
        end = start + len(part.input_ids)
        if end > integers.shape[-1]:
            raise ValueError(f"a pack of {end} tokens or more does not fit seq_len {integers.shape[-1]}")
        integers[0, start:end] = part.input_ids
        integers[1, start:end] = np.arange(end - start)
        integers[2, start:end] = number
        integers[3, start:end] = np.where(part.span_ids > 0, part.span_ids + num_spans, 0)
        integers[4, start:end] = part.ar_targets
        integers[5, start:end] = part.nar_targets
        integers[6, start:end] = part.nar_bins
        weights[0, start:end] = part.ar_weights
        weights[1, start:end] = part.nar_weights
        num_spans += int(part.span_ids.max(initial=0))
        start = end
