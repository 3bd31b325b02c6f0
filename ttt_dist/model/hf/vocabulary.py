"""Rows for tokens that a published model does not know: drawn like its own rows, from a normal of their mean and covariance.

New rows then have the norm and the directions of old ones, and the model's first outputs are no surprise to its layers.
`transformers` does likewise, with the covariance made a billion times smaller; rows that all but agree cannot be told apart,
so here the covariance is whole.
"""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_dist.util.errors import UserError

DRAWN_AT_ONCE = 1024  # rows; a constant, since it decides which number goes where


class RowStatistics(NamedTuple):
    """Mean [H] and the symmetric root [H, H] of the covariance of rows, fp64."""

    mean: Tensor
    root: Tensor


def row_statistics(chunks: Iterable[Tensor], where: str) -> RowStatistics:
    """Statistics of the rows in `chunks` ([n, H] each, one at a time in memory).

    Raises UserError naming `where` if there are none, or some are not finite.
    """
    num_rows, shift, total, products = 0, torch.empty(0), torch.empty(0), torch.empty(0)
    for chunk in chunks:
        if num_rows == 0:
            shift = chunk.double().mean(dim=0)  # any number near the mean: products of centred rows keep their digits
            total, products = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
        rows = chunk.double() - shift
        total += rows.sum(dim=0)
        products.addmm_(rows.T, rows)
        num_rows += len(rows)
    if num_rows < 2 or not products.isfinite().all():
        raise UserError(f"{where}: rows are not finite, or fewer than two; take another copy of the model")
    mean = total / num_rows
    covariance = (products - num_rows * torch.outer(mean, mean)) / (num_rows - 1)
    # The symmetric root is unique: a Cholesky factor may not exist, and the signs of eigenvectors are arbitrary.
    values, vectors = torch.linalg.eigh(covariance)
    return RowStatistics(shift + mean, vectors * values.clamp(min=0).sqrt() @ vectors.T)


def draw_rows(statistics: RowStatistics, num_rows: int, seed: int, name: str) -> Iterator[Tensor]:
    """`num_rows` new rows in chunks [n, H], fp64: a function of the statistics, the seed and the tensor's name."""
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    for first in range(0, num_rows, DRAWN_AT_ONCE):
        shape = (min(DRAWN_AT_ONCE, num_rows - first), len(statistics.mean))
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        yield statistics.mean + noise @ statistics.root
