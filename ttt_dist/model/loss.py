"""The loss: fp32 cross-entropy at the positions that count, in chunks, without the logits of a whole batch.

Gradients are computed chunk by chunk in the forward, next to the logits they come from, so that no logits are kept
and the head is one node of the graph (and one module call) whatever the number of positions: under ZeRO-3 all ranks
must call the same modules equally often.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_dist.sequence.batch import Batch

CHUNK_ELEMENTS = 1 << 23  # logits held at a time: 32 MB in fp32


class LossSums(NamedTuple):
    """Weighted sums over a batch, not yet divided by any count."""

    loss: Tensor
    """AR + NAR, differentiable."""
    ar_sum: Tensor
    """AR alone, detached."""
    nar_sum: Tensor
    """NAR alone, detached."""


class LossRows(NamedTuple):
    """The positions of a batch that have a weight: AR ones first, then NAR ones (a position may be in both)."""

    rows: Tensor
    """Indices into the flattened [B * S], int64 [N]."""
    targets: Tensor
    weights: Tensor
    num_ar: int


def loss_rows(batch: Batch) -> LossRows:
    """Positions with weights other than 0, their targets and weights."""
    ar, nar = batch.ar_weights.flatten(), batch.nar_weights.flatten()
    ar_rows, nar_rows = ar.nonzero().squeeze(1), nar.nonzero().squeeze(1)
    targets = torch.cat([batch.ar_targets.flatten()[ar_rows], batch.nar_targets.flatten()[nar_rows]])
    weights = torch.cat([ar[ar_rows], nar[nar_rows]])
    return LossRows(torch.cat([ar_rows, nar_rows]), targets, weights, len(ar_rows))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, rows: LossRows, num_tokens: int) -> LossSums:
    """Sum of weights * CE(hidden @ weight.T, targets) over hidden [N, H], with weight [V, H].

    Only the first `num_tokens` of the V rows are classes: the padding of the vocabulary takes no probability.
    Zero rows give zero loss and zero gradients. Raises ValueError where a target is no class.
    """
    targets = rows.targets
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < num_tokens:
        raise ValueError(f"loss targets must lie in 0..{num_tokens - 1}, but span {targets.min()}..{targets.max()}")
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return LossSums(
        *_LinearCrossEntropy.apply(hidden, weight, targets, rows.weights, rows.num_ar, num_tokens, needs_grad)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        num_ar: int,
        num_tokens: int,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_grad else None
        classes = weight[:num_tokens]
        chunk = max(CHUNK_ELEMENTS // num_tokens, 1)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ classes.T).to(exact)
            losses[part] = _cross_entropy_(logits, targets[part])
            if grad_hidden is not None and grad_weight is not None:
                logits *= weights[part, None].to(exact)
                # Gradients are multiplied in the weights' own type, and summed over chunks in fp32.
                logits_grad = logits.to(hidden.dtype)
                torch.mm(logits_grad, classes, out=grad_hidden[part])
                _add_product_(grad_weight[:num_tokens], logits_grad.T, hidden[part])
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        losses *= weights.to(exact)
        ar_sum, nar_sum = (part.sum(dtype=torch.float64) for part in losses.split([num_ar, len(losses) - num_ar]))
        ctx.mark_non_differentiable(ar_sum, nar_sum)
        return (ar_sum + nar_sum).to(exact), ar_sum, nar_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), *[None] * 5


def _cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [C] of logits [C, V]; the logits become its gradient, softmax minus one-hot, in place."""
    index = targets.unsqueeze(1)
    log_sum = logits.logsumexp(dim=1, keepdim=True)
    losses = log_sum - logits.gather(1, index)
    logits.sub_(log_sum).exp_().scatter_add_(1, index, torch.full_like(losses, -1))
    return losses.squeeze(1)


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, whatever the types of a and b are."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
