"""The loss: fp32 cross-entropy at the positions that count, without the logits of a whole batch.

The head is one node of the graph (and one module call) whatever the number of positions: under ZeRO-3 all ranks must
call the same modules equally often. What happens inside is `ttt_dist.model.cross_entropy`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_dist.model.cross_entropy import VocabularySlice, by_chunks, by_tiles
from ttt_dist.sequence.batch import Batch, TargetIndices
from ttt_dist.sequence.corruption import NUM_P_BINS
from ttt_dist.sequence.loss_terms import MORE_TERMS, TargetKind, term_names


class LossSums(NamedTuple):
    """Weighted sums over a batch, not yet divided by any number."""

    loss: Tensor
    """The sum of the terms, differentiable."""
    terms: dict[str, Tensor]
    """Each term alone, by name, fp64, detached."""
    nar_by_p: Tensor
    """Cross-entropy of the NAR targets without weights, and their number, by bin of p: fp64 [2, NUM_P_BINS], detached."""
    by_group: Tensor
    """Each term by the batch's groups: fp64 [terms, groups], detached."""

    def metric_sums(self) -> Tensor:
        """All that is summed over batches and processes to be reported, in the order of `metric_names`: fp64."""
        return torch.cat([torch.stack(list(self.terms.values())), self.nar_by_p.flatten(), self.by_group.flatten()])


def metric_names(num_groups: int) -> list[str]:
    """Names of `LossSums.metric_sums` over batches of so many groups: the terms come first, the groups last."""
    bins = [p_bin_name(number) for number in range(NUM_P_BINS)]
    groups = [f"{term}_{group}" for term in term_names() for group in range(num_groups)]
    return [*term_names(), *(f"nar_nats_{name}" for name in bins), *(f"nar_tokens_{name}" for name in bins), *groups]


def p_bin_name(number: int) -> str:
    """Name of the bin of p with this number, from 0: p0.0-0.2."""
    return f"p{number / NUM_P_BINS:.1f}-{(number + 1) / NUM_P_BINS:.1f}"


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """The positions of a batch that have a weight, one kind of target after the other (a position may be of several)."""

    rows: Tensor
    """Indices into hidden states [T, H], int64 [N]."""
    targets: Tensor
    weights: Tensor
    bins: Tensor
    """Bin of p, 1 to NUM_P_BINS, of NAR rows; 0 of others."""
    groups: Tensor
    """See `Batch.group_ids`, int64 [N]."""
    num_groups: int
    kinds: dict[TargetKind, slice]
    """Which rows are of a kind."""
    term_weights: dict[str, float]
    """See `Batch.term_weights`."""

    def total(self, nats: Tensor, log_sums: Tensor) -> Tensor:
        """The loss, fp64, of all rows' cross-entropies [N] and logarithms of the sums of exponentials [N]."""
        whole = (nats * self.weights.to(nats.dtype)).sum(dtype=torch.float64)
        return sum((values.sum(dtype=torch.float64) for _, values in self._more(nats, log_sums)), start=whole)

    def terms(self, nats: Tensor, log_sums: Tensor) -> dict[str, Tensor]:
        """The terms of that sum by name; those that do not count are 0."""
        found = {name: nats.new_zeros((), dtype=torch.float64) for name in term_names()}
        return found | {n: values.sum(dtype=torch.float64) for n, (_, values) in self._weighted(nats, log_sums).items()}

    def by_group(self, nats: Tensor, log_sums: Tensor) -> Tensor:
        """The terms of each group alone, fp64 [terms, groups]."""
        found = {name: nats.new_zeros(self.num_groups, dtype=torch.float64) for name in term_names()}
        for name, (rows, values) in self._weighted(nats, log_sums).items():
            found[name].index_add_(0, self.groups[rows], values.double())
        return torch.stack(list(found.values()))

    def slopes(self, nats: Tensor, log_sums: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Derivatives of the loss by both, which are those of rows `first`, `first` + 1, ...: [C] each.

        They are constants, the weights and 0, but for the terms beside the cross-entropies.
        """
        weights = self.weights[first : first + len(nats)].to(nats.dtype)
        if not self.term_weights:
            return weights, torch.zeros_like(weights)
        with torch.enable_grad():
            leaves = nats.detach().requires_grad_(), log_sums.detach().requires_grad_()
            more = torch.cat([values for _, values in self._more(*leaves, first)])
            of_nats, of_log_sums = torch.autograd.grad(more.sum(), leaves, materialize_grads=True)
        return weights + of_nats, of_log_sums

    def _weighted(self, nats: Tensor, log_sums: Tensor) -> dict[str, tuple[slice, Tensor]]:
        """Of each term that counts, the rows that it is of and what each of them adds."""
        weighted = nats * self.weights.to(nats.dtype)
        found = {kind: (rows, weighted[rows]) for kind, rows in self.kinds.items()}
        more = self._more(nats, log_sums)
        return found | {name: (self.kinds[MORE_TERMS[name].targets], values) for name, values in more}

    def _more(self, nats: Tensor, log_sums: Tensor, first: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Names and weighted values of the terms beside the cross-entropies, of those rows that are theirs."""
        for name, weight in self.term_weights.items():
            of_kind = self.kinds[MORE_TERMS[name].targets]
            rows = slice(max(of_kind.start - first, 0), max(of_kind.stop - first, 0))
            weights = self.weights[first : first + len(nats)][rows].to(nats.dtype) * weight
            yield name, MORE_TERMS[name].value(nats[rows], log_sums[rows]) * weights


def loss_rows(batch: Batch, tokens: slice) -> LossRows:
    """Positions with weights other than 0 among `tokens` of the flattened batch, their targets and weights."""
    found = (batch.target_indices or TargetIndices.of(batch)).within(tokens)

    def of_kinds(name: str) -> Tensor:
        """What the tensors `{kind}_{name}` of the batch have at the positions."""
        return torch.cat([getattr(batch, f"{kind}_{name}").flatten()[tokens][rows] for kind, rows in found.items()])

    ends = list(accumulate(map(len, found.values()), initial=0))
    kinds = {kind: slice(*bounds) for kind, bounds in zip(found, pairwise(ends), strict=True)}
    groups = batch.group_ids.flatten()[tokens]
    bins = [torch.zeros_like(rows) for rows in found.values()]
    nar = list(found).index("nar")
    bins[nar] = batch.nar_bins.flatten()[tokens][found["nar"]]
    return LossRows(
        rows=torch.cat(list(found.values())),
        targets=of_kinds("targets"),
        weights=of_kinds("weights"),
        bins=torch.cat(bins),
        groups=torch.cat([groups[rows] for rows in found.values()]),
        num_groups=batch.num_groups,
        kinds=kinds,
        term_weights=batch.term_weights,
    )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, rows: LossRows, vocabulary: VocabularySlice) -> LossSums:
    """The loss at `rows` of hidden [N, H] @ weight.T, with weight [V, H] or a slice of its rows.

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
    loss, nats, log_sums = entropy(hidden, weight, targets, rows, vocabulary)
    return LossSums(loss, rows.terms(nats, log_sums), _by_bin(nats, rows.bins), rows.by_group(nats, log_sums))


def _by_bin(losses: Tensor, bins: Tensor) -> Tensor:
    """Sum of losses [N] and number of rows in each bin 1 to NUM_P_BINS, fp64 [2, NUM_P_BINS], in one order on any device."""
    is_in = bins == torch.arange(1, NUM_P_BINS + 1, device=bins.device).unsqueeze(1)  # [NUM_P_BINS, N]
    sums = torch.where(is_in, losses, 0).sum(dim=1, dtype=torch.float64)  # a product would carry NaN into other bins
    return torch.stack([sums, is_in.sum(dim=1, dtype=torch.float64)])
