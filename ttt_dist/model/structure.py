"""Of which layers the Transformer consists, how large they are, and so which parameters it has; all without torch.

The model asks a layer factory (`ttt_dist.model.layers.LayerFactory`) for its layers by these functions. `parameter_shapes` asks
one that only notes shapes: what is counted, checked or converted without a model is what would be built.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from ttt_dist.config.model import LoraConfig, ModelConfig

Layer = TypeVar("Layer")
Shapes = dict[str, tuple[int, ...]]


class Factory(Protocol[Layer]):
    """Builds layers by name. Linear maps are called by what tensor-parallel ranks split: output or input columns."""

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> Layer:
        """Ids [T] to [T, hidden_size]; has `.weight` [num_rows, hidden_size]."""
        ...

    def column_linear(self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1) -> Layer:
        """Linear map whose outputs are split: `num_blocks` equal blocks, each split on its own (gate and up)."""
        ...

    def qkv_linear(
        self, name: str, num_in: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, std: float
    ) -> Layer:
        """Fused projection, key-value group by group; a rank gets num_heads / ranks query heads and what they attend to."""
        ...

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> Layer:
        """Linear map without bias whose inputs are split; its output is whole."""
        ...

    def lora(
        self, name: str, num_in: int, parts: Mapping[str, int], num_groups: int, lora: LoraConfig, splits_inputs: bool
    ) -> Layer:
        """What adapters add to a linear map that has the outputs of `parts` (sizes by name) group by group.

        Those of `parts` that `lora` targets have one: `.PART.lora_A` [r, num_in] and `.PART.lora_B` [size, r].
        """
        ...

    def norm(self, name: str, size: int, eps: float, of_heads: bool = False) -> Layer:
        """RMSNorm of hidden states, or of each head (whose heads may be split)."""
        ...

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: Layer | None
    ) -> Layer:
        """Logits and loss (see `ttt_dist.model.layers.Head`); `tied_to` is the embedding whose weight it shares."""
        ...


class BlockLayers(NamedTuple, Generic[Layer]):
    """The layers of a decoder block, in the order of their parameters."""

    attention_norm: Layer
    qkv: Layer
    qkv_lora: Layer | None
    q_norm: Layer | None
    k_norm: Layer | None
    out: Layer
    out_lora: Layer | None
    mlp_norm: Layer
    gate_up: Layer
    gate_up_lora: Layer | None
    down: Layer
    down_lora: Layer | None


def embedding(config: ModelConfig, factory: Factory[Layer], num_rows: int) -> Layer:
    """The embedding of `num_rows` ids."""
    return factory.embedding("embed", num_rows, config.hidden_size, config.init_std)


def block_layers(config: ModelConfig, factory: Factory[Layer], index: int) -> BlockLayers[Layer]:
    """The layers of block `index`."""
    hidden_size, inner, eps, std = config.hidden_size, config.ffn_hidden_size, config.rms_norm_eps, config.init_std
    heads, width, name = (config.num_heads, config.num_kv_heads), head_dim(config), f"blocks.{index}"
    queries, keys = (number * width for number in heads)

    def head_norm(which: str) -> Layer | None:
        return factory.norm(f"{name}.attention.{which}", width, eps, of_heads=True) if config.qk_norm else None

    def lora(of: str, num_in: int, num_groups: int, splits_inputs: bool, **parts: int) -> Layer | None:
        if not config.lora.r or not parts.keys() & set(config.lora.target_modules):
            return None
        return factory.lora(f"{name}.{of}_lora", num_in, parts, num_groups, config.lora, splits_inputs)

    return BlockLayers(
        factory.norm(f"{name}.attention_norm", hidden_size, eps),
        factory.qkv_linear(f"{name}.attention.qkv", hidden_size, *heads, width, config.qkv_bias, std),
        lora("attention.qkv", hidden_size, config.num_kv_heads, False, q_proj=queries, k_proj=keys, v_proj=keys),
        head_norm("q_norm"),
        head_norm("k_norm"),
        factory.row_linear(f"{name}.attention.out", queries, hidden_size, residual_std(config)),
        lora("attention.out", queries, 1, True, o_proj=hidden_size),
        factory.norm(f"{name}.mlp_norm", hidden_size, eps),
        factory.column_linear(f"{name}.mlp.gate_up", hidden_size, 2 * inner, False, std, num_blocks=2),
        lora("mlp.gate_up", hidden_size, 1, False, gate_proj=inner, up_proj=inner),
        factory.row_linear(f"{name}.mlp.down", inner, hidden_size, residual_std(config)),
        lora("mlp.down", inner, 1, True, down_proj=hidden_size),
    )


def last_norm(config: ModelConfig, factory: Factory[Layer]) -> Layer:
    """The norm behind the last block."""
    return factory.norm("norm", config.hidden_size, config.rms_norm_eps)


def head(config: ModelConfig, factory: Factory[Layer], num_rows: int, num_tokens: int, tied_to: Layer | None) -> Layer:
    """The head over `num_rows` classes, of which the first `num_tokens` are real; `tied_to` as in `Factory.head`."""
    return factory.head("head", num_rows, config.hidden_size, num_tokens, config.init_std, tied_to)


def parameter_shapes(config: ModelConfig, num_rows: int) -> Shapes:
    """Names and whole shapes of the parameters, in the Transformer's order; a tied head is the embedding.

    `num_rows` is that of embedding and head: a layout's padded_vocab_size.
    """
    factory = _Noting()
    embed = embedding(config, factory, num_rows)
    for index in range(config.num_layers):
        block_layers(config, factory, index)
    last_norm(config, factory)
    head(config, factory, num_rows, num_rows, embed if config.tie_embeddings else None)
    return factory.shapes


def count_parameters(config: ModelConfig, num_rows: int) -> dict[str, int]:
    """Parameters of the model by part (embed, blocks, norm, head); a tied head counts with the embedding."""
    parts: Counter[str] = Counter()
    for name, shape in parameter_shapes(config, num_rows).items():
        parts[name.split(".")[0]] += math.prod(shape)
    return dict(parts)


def is_adapter(name: str) -> bool:
    """Whether a weight is one of an adapter's."""
    return "_lora." in name


def head_dim(config: ModelConfig) -> int:
    """Width of one attention head."""
    return config.head_dim or config.hidden_size // config.num_heads


def residual_std(config: ModelConfig) -> float:
    """Initial deviation of what is added to the residual stream: its variance does not grow with depth (GPT-2)."""
    return config.init_std / math.sqrt(2 * config.num_layers)


class _Noting:
    """A factory whose layers are their names: it notes the parameters that each kind of layer has."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> str:
        return self._note(name, (num_rows, hidden_size))

    def column_linear(self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1) -> str:
        return self._note(name, (num_out, num_in), bias)

    def qkv_linear(
        self, name: str, num_in: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, std: float
    ) -> str:
        return self._note(name, ((num_heads + 2 * num_kv_heads) * head_dim, num_in), bias)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> str:
        return self._note(name, (num_out, num_in))

    def lora(
        self, name: str, num_in: int, parts: Mapping[str, int], num_groups: int, lora: LoraConfig, splits_inputs: bool
    ) -> str:
        for part, size in parts.items():
            if part in lora.target_modules:
                self.shapes |= {f"{name}.{part}.lora_A": (lora.r, num_in), f"{name}.{part}.lora_B": (size, lora.r)}
        return name

    def norm(self, name: str, size: int, eps: float, of_heads: bool = False) -> str:
        return self._note(name, (size,))

    def head(self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: str | None) -> str:
        return tied_to or self._note(name, (num_rows, hidden_size))

    def _note(self, name: str, shape: tuple[int, ...], bias: bool = False) -> str:
        self.shapes[f"{name}.weight"] = shape
        if bias:
            self.shapes[f"{name}.bias"] = shape[:1]
        return name
