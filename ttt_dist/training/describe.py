"""Sizes of a model that is never built: for `--dry-run`, on any machine."""

from collections import Counter

from ttt_dist.config import ModelConfig
from ttt_dist.model.layers import NoWeights, PlainFactory
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout


def count_parameters(config: ModelConfig, layout: TokenLayout) -> dict[str, int]:
    """Parameters of the model by part (embed, blocks, norm, head); a tied head counts with the embedding."""
    model = Transformer.for_layout(config, layout, PlainFactory(NoWeights()))
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[name.split(".")[0]] += parameter.numel()
    return dict(parts)
