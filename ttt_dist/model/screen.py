"""The likeliest rows of a head, without its product: an int8 copy shows which rows may be, and only those are computed.

A forward of text at temperature 0 reads the whole head to learn one number a row of hidden states. In int8 it is a quarter
to read, and products are several times as fast. What rounding can have changed is bounded, row by row (Cauchy and Schwarz):
with w = s q + e, x = t h + d, of whole numbers q and h,

    |w.x - s t q.h| <= |e| |t h| + |w| |d|

Rows whose bounds overlap the best one's are computed in fp64. So a choice is exact, and its state's alone; where too many rows
overlap, none is made.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ttt_dist.model.tiles import Tiles

MOST_SHARE = 1 / 512
"""Of the rows, that are computed for a state: for 32 states more of them would cost as much as the product."""
PATIENCE = 128
"""States: where of more than these most are left to the logits, a head is not worth it."""
FEW_ROWS = 64  # whose own bounds are not worth a look
MADE_ROWS = 512  # at once: what that takes beside the copy is small
TINY = 1e-30  # a scale of zeros
SMALLEST = 1e-12  # a norm whose square is a number of fp32
ROUNDING = 2.0**-16
"""Of sums in fp32, as a share of |w| |x|; the bound is some hundredth."""


class Screen:
    """An int8 copy of a head's tiles, with what it loses; made in a second for some 200 M elements. They must not change."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.whole = torch.empty(tiles.num_rows, tiles.width, dtype=torch.int8)
        kept, most = torch.empty(3, tiles.num_rows, dtype=torch.float32), num_levels()
        weights = [weight for tile in tiles.transposed() for weight in tile.T.split(MADE_ROWS)]
        sizes = [len(weight) for weight in weights]
        for weight, whole, numbers in zip(weights, self.whole.split(sizes), kept.split(sizes, dim=1), strict=True):
            weight = weight.contiguous()
            scales = weight.abs().amax(1, keepdim=True).clamp_(min=TINY) / most
            rounded = (weight / scales).round_()
            whole.copy_(rounded)
            lost = weight.addcmul(rounded, scales, value=-1)
            torch.stack([scales.squeeze(1), lost.norm(dim=1), weight.norm(dim=1)], out=numbers)
        self.scales, self.lost, self.norms = kept
        self.lost += ROUNDING * self.norms
        self.most_lost, self.most_norm = float(self.lost.max()), float(self.norms.max())
        self.num_asked = self.num_left = 0

    def likeliest(self, hidden: Tensor, rows: slice, others: Tensor) -> Tensor:
        """The first of the likeliest of `rows` but `others` [n], counted from the first of rows, for hidden states [n, H];
        -1 where hidden states are not finite, or too many rows may be the likeliest."""
        found = torch.full((len(hidden),), -1)
        if self.num_left > PATIENCE + self.num_asked / 2:
            return found
        for num_parts in (1, 2):  # one is enough but where a few of a state's numbers are far larger than the others
            which = (found < 0).nonzero().squeeze(1)
            if len(which):
                states = States(hidden[which], num_parts)
                products = torch._int_mm(states.whole, self.whole[rows].T).view(num_parts, len(which), -1)
                found[which] = torch.tensor(
                    [self._likeliest(states, i, products[:, i], rows, others) for i in range(len(which))]
                )
        self.num_asked += len(found)
        self.num_left += int((found < 0).sum())
        return found

    def _likeliest(self, states: States, i: int, products: Tensor, rows: slice, others: Tensor) -> int:
        scales, norm, lost = states.scales[:, i], float(states.norms[i]), float(states.lost[i])
        nearly = products[0] * self.scales[rows]
        for scale, product in zip(scales[1:], products[1:], strict=True):
            nearly.addcmul_(product, self.scales[rows], value=float(scale / scales[0]))
        nearly[others] = float("-inf")
        # First one reach for all rows, which is soon compared; then each row's own; then with the state as it is, for what is left.
        reach = (self.most_lost * norm + self.most_norm * lost) / float(scales[0])
        least = float(nearly.max()) - 2 * reach
        if not math.isfinite(least) or min(norm, self.most_norm) < SMALLEST:
            return -1
        found = (nearly >= least).nonzero().squeeze(1)
        if len(found) > FEW_ROWS:
            own = (self.lost[rows][found] * norm + self.norms[rows][found] * lost) / scales[0]
            found = found[_overlapping(nearly[found], own)]
        if len(found) > max(MOST_SHARE * len(nearly), FEW_ROWS):
            return -1
        x, ids = states.exact[i], found + rows.start
        nearly = (self.whole[ids].float() @ x) * self.scales[ids]
        found = found[_overlapping(nearly, self.lost[ids] * (norm + lost))]
        if len(found) < 2:
            return int(found) if len(found) else -1
        # Row by row: a product sums some rows in another order, and twins would differ.
        exact = (self.tiles.rows(found + rows.start).double() * x.double()).sum(1)
        return int(found[exact.argmax()])


class States:
    """Hidden states [n, H] as sums of int8 parts [P, n, H], each of what the ones before it lost."""

    def __init__(self, hidden: Tensor, num_parts: int) -> None:
        self.exact, left, parts, scales = hidden, hidden, [], []
        for _ in range(num_parts):
            scales.append(left.abs().amax(1, keepdim=True).clamp_(min=TINY) / 127)
            parts.append((left / scales[-1]).round_().nan_to_num_(0))
            left = left - scales[-1] * parts[-1]
        self.whole = torch.cat(parts).to(torch.int8)
        self.scales = torch.stack(scales).squeeze(2)
        self.norms, self.lost = (hidden - left).norm(dim=1), left.norm(dim=1)


def _overlapping(values: Tensor, reach: Tensor) -> Tensor:
    """Which of some values may be the greatest, each being known up to `reach`."""
    return ((values + reach) >= (values - reach).max()).nonzero().squeeze(1)


@cache
def num_levels() -> int:
    """The largest number of an int8 weight whose products are exact: 127, or 63 on processors without VNNI, where oneDNN
    adds two products in 16 bits, which overflow, and torch (2.11) says nothing."""
    ones = torch.full((2, 64), 127, dtype=torch.int8)
    return 127 if int(torch._int_mm(ones, ones.T)[0, 0]) == 64 * 127**2 else 63
