"""Choosing tokens from logits, for all requests at once; randomness comes in as numbers.

A sample is the column at which the running sum of the probabilities passes a uniform number: one number a token, however
large the vocabulary is.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ttt_dist.config.decode import DecodeSettings

COLD = 1e-5  # temperatures below it are greedy: divided by them logits overflow, and nothing but the likeliest would be left
BELOW_ONE = 1 - 2**-23  # so that, in fp32, a number times the whole sum stays below it


def sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """A column of each row of [n, V], which need not sum to 1, by its number in [0, 1) of [n]; none of probability 0."""
    sums = probabilities.cumsum(-1)
    targets = uniforms.to(sums.dtype).clamp(max=BELOW_ONE).unsqueeze(-1) * sums[:, -1:]
    return torch.searchsorted(sums, targets, right=True).squeeze(-1)


def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Zeros but for the fewest likeliest columns of [n, V] whose sum reaches p (nucleus sampling, arXiv 1904.09751)."""
    if p >= 1:
        return probabilities
    values, order = probabilities.sort(descending=True, stable=True)
    before = values.cumsum(-1) - values  # of the tokens ahead of each
    return probabilities.scatter(-1, order, values.masked_fill(before >= p, 0.0))


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance of logits: u + (1 + s)(c - u) (docs/method.md#guidance)."""
    return unconditional + (1 + scale) * (conditional - unconditional)


def choose_text(logits: Tensor, settings: DecodeSettings, uniforms: Tensor) -> Tensor:
    """A column of each row of logits [n, V]: greedy, or sampled with temperature, top-k and top-p by uniforms [n]."""
    if settings.temperature < COLD:
        return logits.argmax(-1)
    logits, columns = logits / settings.temperature, None
    if 0 < settings.top_k < logits.shape[-1]:
        logits, columns = logits.topk(settings.top_k)
    chosen = sample(nucleus(logits.softmax(-1), settings.top_p), uniforms)
    return chosen if columns is None else columns.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def margin(weights: Tensor, sums: Tensor) -> Tensor:
    """How far the likeliest column is ahead of the next [n], of probabilities weights [n, V] / sums [n]."""
    first, second = weights.topk(2).values.unbind(-1)
    return (first - second) / sums


def negative_entropy(weights: Tensor, sums: Tensor) -> Tensor:
    """The sum of p log p [n] over probabilities p = weights [n, V] / sums [n], in nats."""
    return torch.xlogy(weights, weights).sum(-1) / sums - sums.log()


MEASURES = {"margin": margin, "entropy": negative_entropy}
"""Rules of remasking by something else than the probability of what is chosen."""


def choose_codes(
    logits: Tensor,
    temperatures: Tensor,
    uniforms: Tensor,
    measured: Mapping[str, np.ndarray] | None = None,
    before: np.ndarray | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A column of each row of logits [n, V], the model's probability of it, and its confidence; all [n].

    Rows of a temperature below COLD are greedy, but that the column `before` [n] (-1: none), where it is the likeliest, is taken with its
    probability only. Confidence is the probability but in the rows that `measured` names for a rule of
    MEASURES. Temperatures and uniforms [n] are on the CPU. The logits are used up: what they become is not copied.
    """
    best, ids = logits.max(-1, keepdim=True)
    ids = ids.squeeze(-1)
    sampled = (temperatures >= COLD).nonzero().squeeze(-1)
    if len(sampled):
        heat, numbers = temperatures[sampled].to(logits), uniforms[sampled].to(logits.device)
        sampled = sampled.to(logits.device)
        ids[sampled] = sample((logits[sampled] / heat.unsqueeze(-1)).softmax(-1), numbers)
    weights = logits.sub_(best).exp_()
    sums = weights.sum(-1)
    if before is not None:
        likeliest = weights.gather(-1, ids.unsqueeze(-1)).squeeze(-1) / sums
        # In fp64, in which a number stays below 1: what is sure is repeated.
        again = (ids == torch.from_numpy(before).to(ids)) & (uniforms.to(logits.device) >= likeliest.double())
        other = again.nonzero().squeeze(-1)
        ids[other] = weights[other].scatter(-1, ids[other].unsqueeze(-1), -1.0).argmax(-1)
    probability = confidence = weights.gather(-1, ids.unsqueeze(-1)).squeeze(-1) / sums
    for rule, rows in (measured or {}).items():
        where = torch.from_numpy(rows).to(logits.device)
        confidence = confidence.index_copy(0, where, MEASURES[rule](weights[where], sums[where]))
    return ids, probability, confidence
