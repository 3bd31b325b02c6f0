"""Low-rank adapters (LoRA, arXiv 2106.09685): what they add to a linear map, W x + lora_alpha / r * B A x.

A fused projection has an adapter for each part of it, as peft has one for each of transformers' projections: their products
are made one by one and joined in the order of the projection's outputs. An adapter drops nothing out: the model draws nothing.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttt_dist.model.products import linear


def first_std(num_in: int) -> float:
    """Deviation of A's first values: that of peft's, which are uniform within 1 / sqrt(num_in). B begins with zeros."""
    return 1 / math.sqrt(3 * num_in)


class Adapter(nn.Module):
    """x [T, K] to B A x [T, N]; lora_A [r, K], lora_B [N, r]."""

    def __init__(self, lora_a: nn.Parameter, lora_b: nn.Parameter) -> None:
        super().__init__()
        self.lora_A, self.lora_B = lora_a, lora_b

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.lora_A), self.lora_B)


class Adapters(nn.Module):
    """What those of a projection add to its outputs, which are `parts` (sizes by name), group by group; 0 where one has none."""

    def __init__(
        self, adapters: Mapping[str, Adapter], parts: Mapping[str, int], num_groups: int, scale: float
    ) -> None:
        super().__init__()
        self.parts, self.num_groups, self.scale = dict(parts), num_groups, scale
        for name, adapter in adapters.items():
            self.add_module(name, adapter)

    def forward(self, x: Tensor) -> Tensor:
        added = {name: adapter(x) for name, adapter in self.named_children()}
        some = next(iter(added.values()))
        outs = [added[name] if name in added else some.new_zeros(len(some), size) for name, size in self.parts.items()]
        return torch.cat([out.view(len(out), self.num_groups, -1) for out in outs], dim=-1).flatten(1) * self.scale
