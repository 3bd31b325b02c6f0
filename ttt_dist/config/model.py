"""The decoder's shape: settings of the `model` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ttt_dist.config.typed_yaml import require

# Families of published models: whether query, key and value have biases, and whether heads are normalised.
FAMILY_TRAITS = {"qwen2": (True, False), "qwen3": (False, True), "llama": (False, False), "mistral": (False, False)}


@dataclass
class RopeScaling:
    """Rotary frequencies stretched for longer texts than the model was first trained on (Llama 3.1 and later)."""

    type: Literal["none", "llama3"] = "none"
    """none: frequencies as rope_theta gives them; llama3: those of long waves are divided by factor."""
    factor: float = 8.0
    """How many times longer texts become."""
    low_freq_factor: float = 1.0
    """Waves longer than original_max_position_embeddings / this are divided by the whole factor."""
    high_freq_factor: float = 4.0
    """Waves shorter than original_max_position_embeddings / this stay; those between are interpolated."""
    original_max_position_embeddings: int = 8192
    """Longest text of the first training, in tokens."""

    def check(self) -> None:
        """Raise UserError for values that give no frequencies."""
        for name in ("factor", "low_freq_factor", "original_max_position_embeddings"):
            value = getattr(self, name)
            require(value > 0, f"model.rope_scaling.{name} must be positive, not {value}")
        require(
            self.high_freq_factor > self.low_freq_factor,
            f"model.rope_scaling.high_freq_factor={self.high_freq_factor} must be above low_freq_factor={self.low_freq_factor}",
        )


@dataclass
class ModelConfig:
    """Shape of the decoder: Qwen2, Qwen3, Llama or Mistral. The vocabulary is no setting: it comes from the shards' layout."""

    hidden_size: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Decoder blocks."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads; num_heads must be a multiple of it (grouped-query attention)."""
    ffn_hidden_size: int = 768
    """Inner width of the SwiGLU MLP."""
    head_dim: int | None = None
    """Width of one head; null: hidden_size / num_heads."""
    rope_theta: float = 1e6
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    qkv_bias: bool = True
    """Biases on the query, key and value projections."""
    qk_norm: bool = False
    """RMSNorm on the heads of queries and keys (Qwen3)."""
    tie_embeddings: bool = False
    """The output head shares the embedding's weight."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    family: Literal["qwen2", "qwen3", "llama", "mistral"] | None = None
    """What exports call the model in config.json; null: what its biases and norms tell, Llama rather than Mistral."""

    def check(self) -> None:
        """Raise UserError for a shape that cannot be built."""
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size"):
            require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is no multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        require(
            self.head_dim is not None or self.hidden_size % self.num_heads == 0,
            f"model.hidden_size={self.hidden_size} is no multiple of model.num_heads={self.num_heads}; set model.head_dim",
        )
        width = self.head_dim if self.head_dim is not None else self.hidden_size // self.num_heads
        require(
            width > 0 and width % 2 == 0,
            f"rotary positions need an even head width, not {width}; change model.head_dim",
        )
        require(
            self.rope_theta > 0 and self.rms_norm_eps > 0 and self.init_std > 0,
            "model.rope_theta, rms_norm_eps and init_std must be positive",
        )
        self.rope_scaling.check()
        self._check_family()

    def _check_family(self) -> None:
        """An export needs a name that transformers knows."""
        traits = (self.qkv_bias, self.qk_norm)
        require(
            traits in FAMILY_TRAITS.values(),
            "model.qk_norm with model.qkv_bias is no model that transformers knows; set model.qkv_bias=false",
        )
        require(
            self.family is None or FAMILY_TRAITS[self.family] == traits,
            f"model.family={self.family} needs (qkv_bias, qk_norm) = {FAMILY_TRAITS.get(str(self.family))}, not {traits}; "
            "set them so, or model.family=null",
        )
