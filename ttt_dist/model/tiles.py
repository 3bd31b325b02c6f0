"""Embedding and head as decoding on the CPU reads them: in tiles of rows, each of which lies transposed.

A forward of decoding reads the whole head for a few rows. oneDNN reads a transposed weight as fast as memory gives it, a plain
one at three quarters of that. But a part of a transposed weight (the codes' rows) has no fast product, and to transpose the
largest tensor of a model takes its memory twice. A tile is turned where it lies, and a part is the tiles that cover it.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from ttt_dist.model.layers import Head
from ttt_dist.model.products import linear
from ttt_dist.model.screen import Screen
from ttt_dist.model.transformer import Transformer

TILE_ROWS = 4096
LARGE = 1 << 24  # elements from which on the likeliest rows are screened


def tile_vocabulary(model: Transformer) -> None:
    """Turn the head of a model in fp32 on the CPU into tiles, in the memory where it lies, and a tied embedding with it."""
    head, embed = model.head, model.embed
    assert isinstance(head, Head)
    if isinstance(head, TiledHead) or head.weight.device.type != "cpu" or head.weight.dtype != torch.float32:
        return
    weight = head.weight
    tiles = Tiles(weight)
    model.head = TiledHead(tiles, head.num_tokens)
    if embed.weight is weight:
        model.embed = TiledEmbedding(tiles)


class Tiles(nn.Module):
    """A weight [V, H] as tiles [H, TILE_ROWS], the last of them narrower. What `weight` was is then no longer readable."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.num_rows, self.width = weight.shape
        self.flat = nn.Parameter(weight.detach().view(-1), requires_grad=False)
        for tile in self.flat.split(TILE_ROWS * self.width):
            tile.copy_(tile.view(-1, self.width).T.flatten())

    def transposed(self) -> Iterator[Tensor]:
        """Each tile [H, TILE_ROWS]."""
        return (tile.view(self.width, -1) for tile in self.flat.split(TILE_ROWS * self.width))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows [T, H] of ids [T]."""
        first = ids.div(TILE_ROWS, rounding_mode="floor") * TILE_ROWS
        stride = (self.num_rows - first).clamp(max=TILE_ROWS)
        columns = torch.arange(self.width) * stride.unsqueeze(-1)
        return self.flat.take(columns.add_((first * self.width + ids - first).unsqueeze(-1)))

    def product(self, x: Tensor, rows: slice) -> Tensor:
        """x [T, H] @ weight[rows].T."""
        first, last = rows.start // TILE_ROWS * TILE_ROWS, min(-(-rows.stop // TILE_ROWS) * TILE_ROWS, self.num_rows)
        out = x.new_empty(len(x), last - first)
        tiles = self.flat[first * self.width : last * self.width].split(TILE_ROWS * self.width)
        for tile, part in zip(tiles, out.split(TILE_ROWS, dim=1), strict=True):
            part.copy_(linear(x, tile.view(self.width, -1).T))
        return out[:, rows.start - first : rows.stop - first]


class TiledEmbedding(nn.Module):
    """Rows by id, as `ttt_dist.model.layers.Embedding`."""

    def __init__(self, tiles: Tiles) -> None:
        super().__init__()
        self.tiles = tiles

    def forward(self, ids: Tensor) -> Tensor:
        return self.tiles.rows(ids)


class TiledHead(Head):
    """Logits alone: what it was made of cannot be trained any more."""

    def __init__(self, tiles: Tiles, num_tokens: int) -> None:
        nn.Module.__init__(self)
        self.tiles, self.num_tokens = tiles, num_tokens

    @property
    def num_rows(self) -> int:
        return self.tiles.num_rows

    @cached_property
    def screen(self) -> Screen | None:
        """What finds the likeliest row sooner than the product, where there are so many; made when it is first asked for."""
        return Screen(self.tiles) if self.tiles.flat.numel() >= LARGE else None

    def product(self, hidden: Tensor, rows: slice) -> Tensor:
        return self.tiles.product(hidden, rows)
