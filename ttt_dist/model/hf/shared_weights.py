"""Our Transformer on the weights of a model that `transformers` has loaded: nothing is copied, and nothing of that model changes.

What we keep as one weight (query, key and value; gate and up) it keeps as several, so these products are made one by one and
joined.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.hf.weight_names import OUTER_NAMES, to_huggingface
from ttt_dist.model.layers import Embedding, Head, Linear, NoSharding, RMSNorm, SequenceSharding
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError


def transformer_on(model: nn.Module, config: ModelConfig, layout: TokenLayout) -> Transformer:
    """The Transformer of a causal language model of `transformers`, on its device and in its type.

    Raises UserError naming a weight that is missing, of another shape, or not held as numbers of floating point.
    """
    factory = SharedLayerFactory(model, config)
    num_rows = len(factory.weight(OUTER_NAMES["embed.weight"]))
    if num_rows < layout.vocab_size:
        raise UserError(
            f"the model has {num_rows} rows, its token layout {layout.vocab_size} tokens; load the whole export"
        )
    ours = Transformer(config, num_rows, factory, layout.vocab_size)
    devices = {str(weight.device) for weight in ours.parameters()}
    if len(devices) > 1:
        raise UserError(
            f"the model lies on {', '.join(sorted(devices))}; load it on one device, e.g. device_map={{'': 0}}"
        )
    return ours


class JoinedLinear(nn.Module):
    """Several Linears of one input, their outputs joined group by group: the order of a fused projection (`to_huggingface`)."""

    def __init__(self, parts: list[Linear], num_groups: int) -> None:
        super().__init__()
        self.parts, self.num_groups = nn.ModuleList(parts), num_groups

    def forward(self, x: Tensor) -> Tensor:
        outs = [part(x).view(len(x), self.num_groups, -1) for part in self.parts]
        return torch.cat(outs, dim=-1).flatten(1)


class SharedLayerFactory:
    """A `LayerFactory` whose layers hold the parameters of another model, found by Hugging Face's names."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        self.config = config
        self.sequence_sharding: SequenceSharding = NoSharding()
        self._weights = dict(model.named_parameters())

    def weight(self, name: str) -> Tensor:
        """A weight by Hugging Face's name."""
        weight = self._weights.get(name)
        if weight is None or not weight.is_floating_point() or weight.is_meta:
            raise UserError(
                f"the model has no plain weight {name}: load it without quantization, offloading and adapters "
                "(merge_and_unload() merges those)"
            )
        return weight

    def _named(self, name: str, shape: tuple[int, ...]) -> list[Tensor]:
        """The weights that one of ours is put together from."""
        wanted = to_huggingface(name, torch.empty(shape, device="meta"), self.config)
        found = [self.weight(key) for key in wanted]
        for (key, piece), weight in zip(wanted.items(), found, strict=True):
            if weight.shape != piece.shape:
                raise UserError(
                    f"{key} is {list(weight.shape)} in the model, {list(piece.shape)} by config.json; load the export"
                )
        return found

    def _one(self, name: str, shape: tuple[int, ...]) -> Tensor:
        (weight,) = self._named(name, shape)
        return weight

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> nn.Module:
        return Embedding(self._one(f"{name}.weight", (num_rows, hidden_size)))

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        return self._joined(name, (num_out, num_in), bias, 1)

    def qkv_linear(
        self, name: str, num_in: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, std: float
    ) -> nn.Module:
        return self._joined(name, ((num_heads + 2 * num_kv_heads) * head_dim, num_in), bias, num_kv_heads)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        return self._joined(name, (num_out, num_in), False, 1)

    def lora(self, *_: Any, **__: Any) -> nn.Module:
        raise AssertionError("adapters of an export are merged")

    def norm(self, name: str, size: int, eps: float, of_heads: bool = False) -> nn.Module:
        return RMSNorm(self._one(f"{name}.weight", (size,)), eps)

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: nn.Module | None
    ) -> nn.Module:
        if tied_to is not None:
            assert isinstance(tied_to.weight, nn.Parameter)
            return Head(tied_to.weight, num_tokens)
        return Head(nn.Parameter(self._one(f"{name}.weight", (num_rows, hidden_size))), num_tokens)

    def _joined(self, name: str, shape: tuple[int, int], bias: bool, num_groups: int) -> nn.Module:
        weights = self._named(f"{name}.weight", shape)
        biases = self._named(f"{name}.bias", shape[:1]) if bias else [None] * len(weights)
        parts = [Linear(*pair) for pair in zip(weights, biases, strict=True)]
        return parts[0] if len(parts) == 1 else JoinedLinear(parts, num_groups)
