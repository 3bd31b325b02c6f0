"""k-means: Lloyd's algorithm from starts that lie apart, in torch, seeded and deterministic."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8192  # points whose distances to all centroids are held at once
STARTS = 16  # points per centroid that the starts are drawn from; the time grows with it


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index [n] of the centroid [K, D] nearest to each point [n, D]."""
    half_norms = centroids.square().sum(dim=1) / 2
    blocks = [torch.argmin(half_norms - block @ centroids.T, dim=1) for block in points.split(BLOCK)]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64)


def learn_centroids(points: Tensor, num_centroids: int, seed: int, iterations: int = 25) -> Tensor:
    """Centroids [K, D] of points [n, D], n >= K. One that lost all its points restarts at a random point."""
    assert len(points) >= num_centroids
    generator = torch.Generator().manual_seed(seed)
    centroids = _starts(points, num_centroids, generator)
    for _ in range(iterations):
        owner = nearest(points, centroids)
        counts = torch.bincount(owner, minlength=num_centroids)
        sums = torch.zeros_like(centroids).index_add_(0, owner, points)
        updated = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        updated[empty] = points[torch.randperm(len(points), generator=generator)[: int(empty.sum())]]
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def _starts(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, D] of the points, each drawn in proportion to its squared distance from the nearest one before it.

    (Arthur and Vassilvitskii, "k-means++".) Of starts drawn evenly many would lie in silence, which is a fifth of speech,
    and sounds that are rare would share a centroid.
    """
    pool = points[torch.randperm(len(points), generator=generator)[: STARTS * count]]
    norms = pool.square().sum(dim=1)
    starts = pool[:count].clone()
    away = torch.full_like(norms, torch.inf)
    for place in range(1, count):
        newest = starts[place - 1]
        away = torch.minimum(away, norms - 2 * (pool @ newest) + newest.square().sum())
        # The least weight is not zero: there may be fewer distinct points than centroids.
        starts[place] = pool[torch.multinomial(away.clamp(min=1e-30), 1, generator=generator)]
    return starts
