"""The decoder's shape: settings of the `model` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ttt_dist.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, require

# Families of published models: whether query, key and value have biases, and whether heads are normalised.
FAMILY_TRAITS = {"qwen2": (True, False), "qwen3": (False, True), "llama": (False, False), "mistral": (False, False)}
MOST = {"num_layers": 10_000} | dict.fromkeys(
    ("hidden_size", "num_heads", "num_kv_heads", "ffn_hidden_size", "head_dim"), 2**24
)


@dataclass(kw_only=True)
class RopeScaling(Section):
    """Rotary frequencies stretched for longer texts than the model was first trained on (Llama 3.1 and later)."""

    type: Literal["none", "llama3"] = "none"
    """none: frequencies as rope_theta gives them; llama3: those of long waves are divided by factor."""
    factor: PositiveFloat = 8.0
    """How many times longer texts become."""
    low_freq_factor: PositiveFloat = 1.0
    """Waves longer than original_max_position_embeddings / this are divided by the whole factor."""
    high_freq_factor: PositiveFloat = 4.0
    """Waves shorter than original_max_position_embeddings / this stay; those between are interpolated."""
    original_max_position_embeddings: PositiveInt = 8192
    """Longest text of the first training, in tokens."""

    def check(self, key: str) -> None:
        """Raise UserError where the two bounds leave no waves between them."""
        require(
            self.high_freq_factor > self.low_freq_factor,
            f"{key}.high_freq_factor={self.high_freq_factor} must be above {key}.low_freq_factor={self.low_freq_factor}",
        )


@dataclass(kw_only=True)
class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) beside projections that stay as they are; names and defaults are peft's."""

    r: NonNegativeInt = 0
    """Rank of the adapters; 0: there are none, and all weights learn."""
    lora_alpha: PositiveInt = 8
    """What an adapter adds is multiplied by lora_alpha / r."""
    target_modules: list[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Projections with an adapter, by transformers' names."""

    def check(self, key: str) -> None:
        """Raise UserError for adapters of nothing, or of one projection twice."""
        names = self.target_modules
        require(bool(names), f"{key}.target_modules is empty; name projections, or set {key}.r=0 for no adapters")
        require(len(set(names)) == len(names), f"{key}.target_modules names one twice: {', '.join(names)}")


@dataclass(kw_only=True)
class ModelConfig(Section):
    """Shape of the decoder: Qwen2, Qwen3, Llama or Mistral. The vocabulary is no setting: it comes from the shards' layout."""

    hidden_size: PositiveInt = 256
    """Width of the residual stream."""
    num_layers: PositiveInt = 4
    """Decoder blocks."""
    num_heads: PositiveInt = 4
    """Query heads."""
    num_kv_heads: PositiveInt = 2
    """Key and value heads; num_heads must be a multiple of it (grouped-query attention)."""
    ffn_hidden_size: PositiveInt = 768
    """Inner width of the SwiGLU MLP."""
    head_dim: PositiveInt | None = None
    """Width of one head; null: hidden_size / num_heads."""
    rope_theta: PositiveFloat = 1e6
    """Base of the rotary frequencies."""
    rms_norm_eps: PositiveFloat = 1e-6
    """Added to the mean square in RMSNorm."""
    qkv_bias: bool = True
    """Biases on the query, key and value projections."""
    qk_norm: bool = False
    """RMSNorm on the heads of queries and keys (Qwen3)."""
    tie_embeddings: bool = False
    """The output head shares the embedding's weight."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    lora: LoraConfig = field(default_factory=LoraConfig)
    family: Literal["qwen2", "qwen3", "llama", "mistral"] | None = None
    """What exports call the model in config.json; null: what its biases and norms tell, Llama rather than Mistral."""

    def check(self, key: str) -> None:
        """Raise UserError for a shape that cannot be built."""
        for name, most in MOST.items():
            value = getattr(self, name)
            require(value is None or value <= most, f"{key}.{name}={value} is beyond any model; use at most {most:,}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"{key}.num_heads={self.num_heads} is no multiple of {key}.num_kv_heads={self.num_kv_heads}; use one that is",
        )
        require(
            self.head_dim is not None or self.hidden_size % (2 * self.num_heads) == 0,
            f"{key}.hidden_size={self.hidden_size} does not give {key}.num_heads={self.num_heads} heads an even width each, "
            f"which rotary positions need; set {key}.head_dim",
        )
        require(
            self.head_dim is None or self.head_dim % 2 == 0,
            f"{key}.head_dim={self.head_dim} is odd, and rotary positions need an even width; use another one",
        )
        traits = (self.qkv_bias, self.qk_norm)
        require(  # an export needs a name that transformers knows
            traits in FAMILY_TRAITS.values(),
            f"{key}.qk_norm with {key}.qkv_bias is no model that transformers knows; set {key}.qkv_bias=false",
        )
        require(
            self.family is None or FAMILY_TRAITS[self.family] == traits,
            f"{key}.family={self.family} needs ({key}.qkv_bias, {key}.qk_norm) = {FAMILY_TRAITS.get(str(self.family))}, "
            f"not {traits}; set them so, or {key}.family=null",
        )
