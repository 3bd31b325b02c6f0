"""The loss: fp32 cross-entropy at the positions that count, in chunks, without the logits of a whole batch.

Gradients are computed chunk by chunk in the forward, next to the logits they come from, so that no logits are kept
and the head is one node of the graph (and one module call) whatever the number of positions: under ZeRO-3 all ranks
must call the same modules equally often.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_dist.model.loss_chunks import chunk_rows
from ttt_dist.sequence.batch import Batch
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


class VocabularySlice(NamedTuple):
    """Which classes the rows of a head's weight are, and how sums over the whole vocabulary are made."""

    first: int
    """Class of row 0."""
    num_tokens: int
    """Classes of the whole vocabulary; rows beyond them are padding and take no probability."""
    reduce_max: Callable[[Tensor], None] = lambda _: None
    """Replaces a tensor by its maximum over all slices, in place."""
    reduce_sum: Callable[[Tensor], None] = lambda _: None
    """... by its sum."""


def loss_rows(batch: Batch, tokens: slice) -> LossRows:
    """Positions with weights other than 0 among `tokens` of the flattened batch, their targets and weights."""
    ar, nar = batch.ar_weights.flatten()[tokens], batch.nar_weights.flatten()[tokens]
    ar_rows, nar_rows = ar.nonzero().squeeze(1), nar.nonzero().squeeze(1)
    targets = [batch.ar_targets.flatten()[tokens][ar_rows], batch.nar_targets.flatten()[tokens][nar_rows]]
    bins = torch.cat([torch.zeros_like(ar_rows), batch.nar_bins.flatten()[tokens][nar_rows]])
    weights = torch.cat([ar[ar_rows], nar[nar_rows]])
    return LossRows(torch.cat([ar_rows, nar_rows]), torch.cat(targets), weights, bins, len(ar_rows))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, rows: LossRows, vocabulary: VocabularySlice) -> LossSums:
    """Sum of weights * CE(hidden @ weight.T, targets) over hidden [N, H], with weight [V, H] or a slice of its rows.

    The gradient of `hidden` is that of this slice: slices must sum it. Zero rows give zero loss and zero gradients.
    Raises ValueError where a target is no class.

    Not a library's: torch has no such function, and Liger's fused kernel takes one weight for all tokens where
    ours differ (1/p), and a whole vocabulary where ours may be split over ranks.
    """
    targets, num_tokens = rows.targets, vocabulary.num_tokens
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < num_tokens:
        raise ValueError(f"loss targets must lie in 0..{num_tokens - 1}, but span {targets.min()}..{targets.max()}")
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return LossSums(*_LinearCrossEntropy.apply(hidden, weight, rows, vocabulary, needs_grad))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: LossRows,
        vocabulary: VocabularySlice,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_grad else None
        num_classes = min(max(vocabulary.num_tokens - vocabulary.first, 0), len(weight))  # the rest is padding
        classes = weight[:num_classes]
        chunk = chunk_rows(len(weight), hidden.is_cuda)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ classes.T).to(exact)
            losses[part] = _cross_entropy_(logits, rows.targets[part], vocabulary)
            if grad_hidden is not None and grad_weight is not None:
                logits *= rows.weights[part, None].to(exact)
                # Gradients are multiplied in the weights' own type, and summed over chunks in fp32.
                logits_grad = logits.to(hidden.dtype)
                torch.mm(logits_grad, classes, out=grad_hidden[part])
                _add_product_(grad_weight[:num_classes], logits_grad.T, hidden[part])
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        nar_by_p = _by_bin(losses, rows.bins)
        losses *= rows.weights.to(exact)
        ar_sum, nar_sum = (part.sum(dtype=torch.float64) for part in losses.tensor_split([rows.num_ar]))
        ctx.mark_non_differentiable(ar_sum, nar_sum, nar_by_p)
        return (ar_sum + nar_sum).to(exact), ar_sum, nar_sum, nar_by_p

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), None, None, None


def _by_bin(losses: Tensor, bins: Tensor) -> Tensor:
    """Sum of losses [N] and number of rows in each bin 1 to NUM_P_BINS, fp64 [2, NUM_P_BINS], in one order on any device."""
    is_in = bins == torch.arange(1, NUM_P_BINS + 1, device=bins.device).unsqueeze(1)  # [NUM_P_BINS, N]
    sums = torch.where(is_in, losses, 0).sum(dim=1, dtype=torch.float64)  # a product would carry NaN into other bins
    return torch.stack([sums, is_in.sum(dim=1, dtype=torch.float64)])


def _cross_entropy_(logits: Tensor, targets: Tensor, vocabulary: VocabularySlice) -> Tensor:
    """Cross-entropy [C] of logits [C, V]; the logits become its gradient, softmax minus one-hot, in place."""
    num_classes = logits.shape[1]
    largest = logits.amax(dim=1) if num_classes else logits.new_full((len(logits),), float("-inf"))
    vocabulary.reduce_max(largest)
    logits.sub_(largest.unsqueeze(1))
    local = (targets - vocabulary.first).unsqueeze(1)
    here = (local >= 0) & (local < num_classes)
    index = local.clamp(0, max(num_classes - 1, 0))
    sums = torch.zeros(2, len(logits), dtype=logits.dtype, device=logits.device)  # target's logit; sum of exponentials
    if num_classes:
        torch.mul(logits.gather(1, index), here, out=sums[0].unsqueeze(1))
    torch.sum(logits.exp_(), dim=1, out=sums[1])
    vocabulary.reduce_sum(sums)
    target_logit, sum_exp = sums
    logits.div_(sum_exp.unsqueeze(1))
    if num_classes:
        logits.scatter_add_(1, index, -here.to(logits.dtype))
    return sum_exp.log() - target_logit


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, whatever the types of a and b are."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
