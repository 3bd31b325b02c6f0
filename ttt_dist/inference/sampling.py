"""Choosing tokens from logits: pure functions; randomness comes in as a generator."""

import numpy as np
import torch
from torch import Tensor

from ttt_dist.decode_settings import DecodeSettings


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest of logits [V]; 0 keeps all. Ties with the k-th stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[-1], float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens of logits [V] whose probability reaches p (nucleus sampling, arXiv 1904.09751)."""
    if p >= 1:
        return logits
    probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities  # of the tokens ahead of each
    return logits.index_fill(0, order[before >= p], float("-inf"))


def gumbel_noise(shape: torch.Size, rng: np.random.Generator) -> Tensor:
    """Noise whose addition to logits / temperature makes their argmax a sample; fp32."""
    uniform = rng.random(shape, dtype=np.float64).clip(1e-20)
    return torch.from_numpy(-np.log(-np.log(uniform))).float()


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of logits: u + (1 + s)(c - u) (method: decoding)."""
    return unconditional + (1 + scale) * (conditional - unconditional)


def choose_text(logits: Tensor, settings: DecodeSettings, rng: np.random.Generator) -> int:
    """One of the tokens that logits [V] are of: greedy, or sampled with temperature, top-k and top-p."""
    if settings.temperature > 0:
        logits = keep_top_p(keep_top_k(logits / settings.temperature, settings.top_k), settings.top_p)
        logits = logits + gumbel_noise(logits.shape, rng).to(logits.device)
    return int(logits.argmax())


def choose_codes(logits: Tensor, temperature: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A token for each row of logits [n, V] and the model's probability of it, both [n]."""
    noisy = logits if temperature == 0 else logits / temperature + gumbel_noise(logits.shape, rng).to(logits.device)
    ids = noisy.argmax(-1)
    return ids, logits.softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def most_confident(confidence: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of confidence [n]; of equals the earlier."""
    return confidence.argsort(descending=True, stable=True)[:count]
