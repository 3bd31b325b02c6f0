"""Sizes of a model that is never built: for `--dry-run`, on any machine."""

from collections import Counter

import torch
from torch import Tensor

from ttt_dist.config import ModelConfig
from ttt_dist.model.layers import PlainFactory
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout


class _ShapesOnly(PlainFactory):
    """Layers without storage."""

    def _normal(self, name: str, *shape: int, std: float) -> Tensor:
        return torch.empty(shape, device="meta")


def count_parameters(config: ModelConfig, layout: TokenLayout) -> dict[str, int]:
    """Parameters of the model by part (embed, blocks, norm, head); a tied head counts with the embedding."""
    with torch.device("meta"):
        model = Transformer.for_layout(config, layout, _ShapesOnly())
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] += parameter.numel()
    return dict(parts)
