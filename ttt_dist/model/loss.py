"""The loss: fp32 cross-entropy at the positions that count, without the logits of a whole batch.

The head is one node of the graph (and one module call) whatever the number of positions: under ZeRO-3 all ranks must
call the same modules equally often. What happens inside is `ttt_dist.model.cross_entropy`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_dist.model.cross_entropy import VocabularySlice, by_chunks, by_tiles
from ttt_dist.sequence.batch import Batch, LossPlaces
from ttt_dist.sequence.corruption import NUM_P_BINS

NUM_FIGURES = 2 + 2 * NUM_P_BINS  # of LossSums.figures


class LossSums(NamedTuple):
    """Weighted sums over a batch, not yet divided by any count."""

    loss: Tensor
    """AR + NAR, differentiable."""
    ar_sum: Tensor
    """AR alone, detached."""
    nar_sum: Tensor
    """NAR alone, detached."""
    nar_by_p: Tensor
    """Cross-entropy of the NAR targets without weights, and their number, by bin of p: fp64 [2, NUM_P_BINS], detached."""

    def figures(self) -> Tensor:
        """All that is summed over batches and processes to be reported: AR, NAR, `nar_by_p`; fp64 [NUM_FIGURES]."""
        return torch.cat([self.ar_sum.view(1), self.nar_sum.view(1), self.nar_by_p.flatten()])


class LossRows(NamedTuple):
    """The positions of a batch that have a weight: AR ones first, then NAR ones (a position may be in both)."""

    rows: Tensor
    """Indices into hidden states [T, H], int64 [N]."""
    targets: Tensor
    weights: Tensor
    bins: Tensor
    """Bin of p, 1 to NUM_P_BINS, of NAR rows; 0 of AR rows."""
    num_ar: int


def loss_rows(batch: Batch, tokens: slice) -> LossRows:
    """Positions with weights other than 0 among `tokens` of the flattened batch, their targets and weights."""
    ar, nar = batch.ar_weights.flatten()[tokens], batch.nar_weights.flatten()[tokens]
    ar_rows, nar_rows = (batch.places or LossPlaces.of(batch)).within(tokens)
    targets = [batch.ar_targets.flatten()[tokens][ar_rows], batch.nar_targets.flatten()[tokens][nar_rows]]
    bins = torch.cat([torch.zeros_like(ar_rows), batch.nar_bins.flatten()[tokens][nar_rows]])
    weights = torch.cat([ar[ar_rows], nar[nar_rows]])
    return LossRows(torch.cat([ar_rows, nar_rows]), torch.cat(targets), weights, bins, len(ar_rows))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, rows: LossRows, vocabulary: VocabularySlice) -> LossSums:
    """Sum of weights * CE(hidden @ weight.T, targets) over hidden [N, H], with weight [V, H] or a slice of its rows.

    The gradient of `hidden` is that of this slice: slices must sum it. Zero rows give zero loss and zero gradients.
    Raises ValueError where a target on the CPU is no class; what goes to a GPU was checked when it was collated, as a look
    at it there would wait for the device.

    Not a library's: torch has no such function, and Liger's fused kernel takes one weight for all tokens where
    ours differ (1/p), and a whole vocabulary where ours may be split over ranks.
    """
    targets, num_tokens = rows.targets, vocabulary.num_tokens
    if not targets.is_cuda and targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < num_tokens:
        raise ValueError(f"loss targets must lie in 0..{num_tokens - 1}, but span {targets.min()}..{targets.max()}")
    entropy = by_chunks if hidden.is_cuda else by_tiles
    weighted, losses = entropy(hidden, weight, rows.targets, rows.weights, vocabulary)
    sums = (losses * rows.weights.to(losses.dtype)).tensor_split([rows.num_ar])
    ar_sum, nar_sum = (part.sum(dtype=torch.float64) for part in sums)
    return LossSums(weighted, ar_sum, nar_sum, _by_bin(losses, rows.bins))


def _by_bin(losses: Tensor, bins: Tensor) -> Tensor:
    """Sum of losses [N] and number of rows in each bin 1 to NUM_P_BINS, fp64 [2, NUM_P_BINS], in one order on any device."""
    is_in = bins == torch.arange(1, NUM_P_BINS + 1, device=bins.device).unsqueeze(1)  # [NUM_P_BINS, N]
    sums = torch.where(is_in, losses, 0).sum(dim=1, dtype=torch.float64)  # a product would carry NaN into other bins
    return torch.stack([sums, is_in.sum(dim=1, dtype=torch.float64)])
