"""k-means: Lloyd's algorithm in torch, seeded and deterministic."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8192  # points whose distances to all centroids are held at once


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index [n] of the centroid [K, D] nearest to each point [n, D]."""
    half_norms = centroids.square().sum(dim=1) / 2
    blocks = [torch.argmin(half_norms - block @ centroids.T, dim=1) for block in points.split(BLOCK)]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64)


def learn_centroids(points: Tensor, num_centroids: int, seed: int, iterations: int = 25) -> Tensor:
    """Centroids [K, D] of points [n, D], n >= K. They start as random points; one that lost all its points restarts
    at a random point."""
    assert len(points) >= num_centroids
    generator = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=generator)[:num_centroids]].clone()
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
