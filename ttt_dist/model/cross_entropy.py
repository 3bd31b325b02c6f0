"""Cross-entropy of products with the head's weight, and its gradients: by tiles of the vocabulary, or by chunks of rows.

On the CPU the weight of a large vocabulary is what has to be moved (172 MB for 168,072 entries of 256), so it is gone
through twice, a tile of classes at a time whose logits of all rows stay in the cache: forward for the sum of exponentials,
backward for the gradients. The logits are computed twice; in return each row of the weight's gradient is written once, and
no logits ever go to memory: half of the time of chunks of rows.

On CUDA products are what costs: gradients are made in the forward pass, from the logits of some thousand rows, by
compiled kernels that read and write logits of the weight's own type and compute in fp32. The forward pass is where they
can be made, as the loss is a function of two numbers of each row, whose slopes are known as soon as the row's logits are;
what comes after it only scales all of it.

The two numbers are the cross-entropy `nats`, and `log_sums`, the logarithm of the sum of exponentials. With slopes u and v
by them, the gradient of a row's logits is (u + v) * softmax - u * one_hot: of a cross-entropy alone, whose u is its weight
and v is 0, the well-known weight * (softmax - one_hot).
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_dist.model.loss_chunks import CHUNK_ROWS, TILE_ELEMENTS, TILE_ROWS
from ttt_dist.model.products import product


class VocabularySlice(NamedTuple):
    """Which classes the rows of a head's weight are, and how sums over the whole vocabulary are made."""

    first: int
    """Class of row 0."""
    num_tokens: int
    """Classes of the whole vocabulary; rows beyond them are padding and take no probability."""
    reduce_max: Callable[[Tensor], object] = lambda _: None
    """Replaces a tensor by its maximum over all slices, in place."""
    reduce_sum: Callable[[Tensor], object] = lambda _: None
    """... by its sum."""

    def of(self, weight: Tensor) -> Tensor:
        """The rows of a weight [V, H] that are classes."""
        return weight[: max(self.num_tokens - self.first, 0)]


class RowLoss(Protocol):
    """The loss as a function of cross-entropies [N] and logarithms of the sums of exponentials [N], fp32 or fp64."""

    def total(self, nats: Tensor, log_sums: Tensor) -> Tensor:
        """The loss of all rows, fp64."""

    def slopes(self, nats: Tensor, log_sums: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Its derivatives by both, whose values are given for rows `first`, `first` + 1, ...: [C] each."""


def by_tiles(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_loss: RowLoss, vocabulary: VocabularySlice
) -> tuple[Tensor, Tensor, Tensor]:
    """`row_loss` of hidden [N, H] @ weight [V, H].T at `targets`; and, detached, cross-entropies and logarithms of sums [N]."""
    loss, nats, log_sums = _ByTiles.apply(hidden, weight, targets, row_loss, vocabulary)
    return loss, nats, log_sums


def by_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, row_loss: RowLoss, vocabulary: VocabularySlice
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `by_tiles`."""
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, nats, log_sums = _ByChunks.apply(hidden, weight, targets, row_loss, vocabulary, needs_grad)
    return loss, nats, log_sums


class _ByTiles(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_loss: RowLoss, vocabulary: VocabularySlice
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        log_sums, nats = torch.empty(2, len(hidden), dtype=exact)
        local, classes = targets - vocabulary.first, vocabulary.of(weight)
        for rows in _slices(len(hidden), TILE_ROWS):
            log_sums[rows], nats[rows] = _entropy(hidden[rows], classes, local[rows], vocabulary)
        ctx.save_for_backward(hidden, weight, local, nats, log_sums)
        ctx.row_loss, ctx.vocabulary = row_loss, vocabulary
        ctx.mark_non_differentiable(nats, log_sums)
        return row_loss.total(nats, log_sums).to(exact), nats, log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states and weight, tile by tile as the forward pass went."""
        hidden, weight, local, nats, log_sums = ctx.saved_tensors
        classes = ctx.vocabulary.of(weight)
        of_nats, of_log_sums = ctx.row_loss.slopes(nats, log_sums, 0)
        # The tile is softmax - ratio * one_hot, the ratio 1 where there are cross-entropies alone; the scale of a row
        # multiplies the small factors of both products rather than the tile. Where the scale is 0 there is no softmax.
        scale = (of_nats + of_log_sums) * grad
        is_without = scale == 0
        scale = torch.where(is_without, 1, scale)
        ratio, log_sums = of_nats * grad / scale, torch.where(is_without, float("inf"), log_sums)
        scale = scale.unsqueeze(1)
        grad_hidden = torch.zeros(hidden.shape, dtype=log_sums.dtype)
        grad_weight = torch.empty(weight.shape, dtype=log_sums.dtype) if ctx.needs_input_grad[1] else None
        if grad_weight is not None:
            grad_weight[len(classes) if len(hidden) else 0 :] = 0
        for rows in _slices(len(hidden), TILE_ROWS):
            scaled = (hidden[rows] * scale[rows]).to(hidden.dtype)
            for tile, logits in _tiles(hidden[rows], classes):
                errors = _errors_(logits, log_sums[rows], local[rows] - tile.start, ratio[rows]).to(hidden.dtype)
                if grad_weight is not None:
                    part, total = product(errors, scaled.T), grad_weight[tile]
                    # The first rows write what was never cleared: each element goes to memory once where one pass is enough.
                    total.copy_(part) if rows.start == 0 else total.add_(part)
                grad_hidden[rows] += product(errors.T, classes[tile].T)
        of_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden.mul_(scale).to(hidden.dtype), of_weight, None, None, None


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


def _tiles(hidden: Tensor, classes: Tensor) -> Any:
    """Slices of the classes with their logits, at least fp32 [C, N]: classes first, as both gradients' products like them."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    for tile in _slices(len(classes), max(TILE_ELEMENTS // len(hidden), 1)):
        yield tile, product(classes[tile], hidden).to(exact)


def _entropy(hidden: Tensor, classes: Tensor, local: Tensor, vocabulary: VocabularySlice) -> tuple[Tensor, Tensor]:
    """Logarithms of the sums of exponentials, and cross-entropies at `local`, classes counted from this slice's first."""
    # One pass: what is summed so far is rescaled whenever a tile has a larger logit than all before it.
    largest = torch.full_like(local, float("-inf"), dtype=torch.promote_types(hidden.dtype, torch.float32))
    target_logit, sum_exp = sums = torch.zeros(2, len(local), dtype=largest.dtype)
    for tile, logits in _tiles(hidden, classes):
        here, target = _inside(local - tile.start, len(logits))
        target_logit[here] = logits[target, here]
        before, largest = largest, torch.maximum(largest, logits.amax(0))
        sum_exp.mul_((before - largest).exp_()).add_(logits.sub_(largest).exp_().sum(0))
    before = largest.clone()
    vocabulary.reduce_max(largest)  # slices of the vocabulary: the largest of all, then sums to its measure
    sum_exp.mul_((before - largest).exp_())
    vocabulary.reduce_sum(sums)
    log_sum = sum_exp.log().add_(largest)
    return log_sum, log_sum - target_logit


def _errors_(logits: Tensor, log_sums: Tensor, local: Tensor, ratio: Tensor) -> Tensor:
    """Softmax minus `ratio` * one-hot of a tile [C, N], in place of its logits."""
    errors = logits.sub_(log_sums).exp_()
    here, target = _inside(local, len(errors))
    errors[target, here] -= ratio[here]
    return errors


def _inside(local: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Which rows have their class in a tile of `number` classes, and which of these it is."""
    here = ((local >= 0) & (local < number)).nonzero().squeeze(1)
    return here, local[here]


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_loss: RowLoss,
        vocabulary: VocabularySlice,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and gradients of CHUNK_ROWS rows after the other: the logits of one chunk are there at a time."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        log_sums, nats = torch.empty(2, len(hidden), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        learns = needs_grad and ctx.needs_input_grad[1]
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if learns else None
        local, classes = targets - vocabulary.first, vocabulary.of(weight)
        for rows in _slices(len(hidden), CHUNK_ROWS):
            # The logits of a chunk are the one large buffer: read three times by the kernels, written once by the product.
            logits = hidden[rows] @ classes.T
            largest = _kernel(_largest)(logits)
            vocabulary.reduce_max(largest)
            sums = _kernel(_sums)(logits, largest, local[rows])
            vocabulary.reduce_sum(sums)
            shifted = sums[1].log()
            nats[rows], log_sums[rows] = shifted - sums[0], shifted + largest
            if grad_hidden is not None:
                slopes = row_loss.slopes(nats[rows], log_sums[rows], rows.start)
                errors = _kernel(_errors)(logits, largest, sums[1], local[rows], *slopes)
                torch.mm(errors, classes, out=grad_hidden[rows])
                if grad_weight is not None:
                    _add_product_(grad_weight[: len(classes)], errors.T, hidden[rows])
        if grad_hidden is not None:
            ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(nats, log_sums)
        return row_loss.total(nats, log_sums).to(exact), nats, log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return of_hidden, of_weight, None, None, None, None


@cache
def _kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` compiled for any number of rows where there is a GPU; as it is elsewhere."""
    return torch.compile(function, dynamic=True, fullgraph=True) if torch.cuda.is_available() else function


def _largest(logits: Tensor) -> Tensor:
    if not logits.shape[1]:  # a slice of nothing but padding
        return logits.new_full(logits.shape[:1], float("-inf")).float()
    return logits.amax(1).to(_exact(logits))


def _sums(logits: Tensor, largest: Tensor, local: Tensor) -> Tensor:
    """The target's logit less the largest, 0 where another slice has it, and the sum of exponentials, [2, C]."""
    shifted = logits.to(_exact(logits)) - largest.unsqueeze(1)
    targets = torch.where(_one_hot(logits, local), shifted, 0).sum(1)
    return torch.stack([targets, shifted.exp().sum(1)])


def _errors(
    logits: Tensor, largest: Tensor, sum_exp: Tensor, local: Tensor, of_nats: Tensor, of_log_sums: Tensor
) -> Tensor:
    """Gradient of the logits: (u + v) softmax - u one-hot with the slopes u, v of each row, in the type of the logits."""
    shifted = logits.to(_exact(logits)) - largest.unsqueeze(1)
    softmax = shifted.exp() * ((of_nats + of_log_sums) / sum_exp).unsqueeze(1)
    return torch.where(_one_hot(logits, local), softmax - of_nats.unsqueeze(1), softmax).to(logits.dtype)


def _one_hot(logits: Tensor, local: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == local.unsqueeze(1)


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; in fp32 whatever the type of a and b is."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:  # the sum inside the product: no product in bf16 that has to be read again
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b
