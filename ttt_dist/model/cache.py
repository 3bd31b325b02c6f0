"""Keys and values of earlier tokens, kept between forwards, and the attention of new tokens over them (method: decoding).

What a token gave as key and value never changes once everything that it sees is final. The caller says how many tokens
are (`KeyValueCache.length`); the others are written again at the next forward, over what they left.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_CAPACITY = 256


class KeyValueCache:
    """Keys and values of one sequence, of all layers; the first `length` tokens are final."""

    def __init__(self) -> None:
        self.length = 0
        self._layers: list[Tensor] = []  # [2, G, capacity, D] each

    def write(self, layer: int, keys: Tensor, values: Tensor) -> Tensor:
        """Put keys and values [n, G, D] behind the final ones; both of all tokens so far, [2, G, length + n, D]."""
        end = self.length + len(keys)
        if layer == len(self._layers):
            self._layers.append(keys.new_empty(2, keys.shape[1], max(FIRST_CAPACITY, 2 * end), keys.shape[2]))
        store = self._layers[layer]
        if end > store.shape[2]:
            store = torch.cat([store[:, :, : self.length], store.new_empty(2, *keys.shape[1:2], end, keys.shape[2])], 2)
            self._layers[layer] = store
        store[0, :, self.length : end] = keys.transpose(0, 1)
        store[1, :, self.length : end] = values.transpose(0, 1)
        return store[:, :, :end]


@dataclass
class NewTokens:
    """The tokens of one sequence that a forward computes."""

    cache: KeyValueCache
    count: int
    mask: Tensor | None
    """What each sees of the sequence, additive [count, length + count]; None: everything."""

    @classmethod
    def of(cls, cache: KeyValueCache, ends: Tensor, dtype: torch.dtype, device: torch.device) -> "NewTokens":
        """From the exclusive end of what each sees [n], as an index into the sequence; on the CPU, where nothing waits."""
        hidden = torch.arange(cache.length + len(ends)) >= ends.unsqueeze(-1)
        if not hidden.any():
            return cls(cache, len(ends), None)
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        return cls(cache, len(ends), mask.to(device))


class CachePlan:
    """The attention of one forward over new tokens of several sequences, laid end to end: for one pass over the layers."""

    def __init__(self, parts: list[NewTokens]) -> None:
        self.parts = parts
        self._layer = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q [T, H, D] with new keys and values [T, G, D], in the layer that follows the last call's."""
        counts = [part.count for part in self.parts]
        pieces = zip(q.split(counts), k.split(counts), v.split(counts), strict=True)
        outs = [_attend_part(part, self._layer, *piece) for part, piece in zip(self.parts, pieces, strict=True)]
        self._layer += 1
        return torch.cat(outs) if len(outs) > 1 else outs[0]


def _attend_part(part: NewTokens, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads of a group share its keys, so they are rows of one query: nothing is repeated."""
    (num_tokens, num_heads, width), num_groups = q.shape, k.shape[1]
    keys, values = part.cache.write(layer, k, v).unsqueeze(1)
    per_group = num_heads // num_groups
    rows = q.view(num_tokens, num_groups, per_group, width).permute(1, 2, 0, 3).reshape(1, num_groups, -1, width)
    mask = part.mask if part.mask is None or per_group == 1 else part.mask.repeat(per_group, 1)
    out = F.scaled_dot_product_attention(rows, keys, values, mask)
    return out.view(num_groups, per_group, num_tokens, width).permute(2, 0, 1, 3).reshape(num_tokens, num_heads, width)
