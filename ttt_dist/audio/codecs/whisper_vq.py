"""The encoder of GLM-4-Voice's speech tokenizer: Whisper's, made causal in blocks, averaged over time and quantised.

(Zeng et al., "GLM-4-Voice", arXiv 2412.02612, section 3.1.) Whisper-large-v3's first 16 layers behind two convolutions
that look back only; a frame attends to all frames before it and to its own block of 200 (4 s); the mean of 4 frames is
replaced by its nearest codebook entry. The published model adds its second position embeddings after that, so they
decide no code, and no layer norm stands between the last layer and the codebook. Weights have the published names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ttt_dist.audio.codecs.kmeans import nearest
from ttt_dist.util.errors import UserError

CONV_STRIDES = (1, 2)
KERNEL = 3
FIXED: dict[str, Any] = {
    "activation_function": "gelu",
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "encoder_residual_source_position": None,
    "encoder_residual_target_position": None,
    "pooling_type": "avg",
    "quantize_causal_encoder": False,
    "use_residual_adapter": False,
}
"""Settings of config.json of which only this value is implemented."""
ABSENT: dict[str, Any] = {"activation_function": "gelu", "encoder_causal_convolution": False, "pooling_type": "max"}
"""What the published code takes a missing setting for, where that is not None or False."""


@dataclass(frozen=True, kw_only=True)
class WhisperVQConfig:
    """The settings that decide shapes; named as in config.json."""

    d_model: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int  # frames (50 a second) of the longest piece
    pooling_kernel_size: int
    pooling_position: int
    quantize_position: int  # number of layers before the codebook
    quantize_vocab_size: int
    quantize_causal_block_size: int

    @classmethod
    def read(cls, values: Mapping[str, Any], path: Path) -> WhisperVQConfig:
        """From the contents of config.json at `path`; UserError naming a setting that is not implemented."""
        for key, wanted in FIXED.items():
            found = values.get(key, ABSENT.get(key))
            if found != wanted and (found or wanted):
                raise UserError(
                    f"{path}: {key} {found!r} is not implemented, only {wanted!r}; use glm-4-voice-tokenizer's"
                )
        for key in cls.__dataclass_fields__:
            if not isinstance(values.get(key), int) or values[key] < 1:
                raise UserError(
                    f"{path}: {key} {values.get(key)!r} is no count; use glm-4-voice-tokenizer's config.json"
                )
        config = cls(**{key: values[key] for key in cls.__dataclass_fields__})
        config.check(path)
        return config

    def check(self, path: Path) -> None:
        """Refuse what does not fit together."""
        if self.pooling_position != self.quantize_position:
            raise UserError(
                f"{path}: pooling_position {self.pooling_position} other than quantize_position {self.quantize_position} is "
                "not implemented; use glm-4-voice-tokenizer's"
            )
        for key, divisor in (("d_model", "encoder_attention_heads"), ("max_source_positions", "pooling_kernel_size")):
            if getattr(self, key) % getattr(self, divisor):
                raise UserError(f"{path}: {key} is no multiple of {divisor}; use glm-4-voice-tokenizer's config.json")


class CausalConv1d(nn.Conv1d):
    """[B, C, T] -> [B, C', T / stride]; an output sees no later input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (self.kernel_size[0] - 1, 0)))


class Attention(nn.Module):
    """Whisper's self-attention; keys have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Whisper's encoder layer: attention and a feed-forward net, each behind a layer norm. [B, P, D] -> [B, P, D]."""

    def __init__(self, config: WhisperVQConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.d_model, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperVQ(nn.Module):
    """Features to codes. The codebook stays in fp32 whatever the precision of the layers (`to_inference`)."""

    def __init__(self, config: WhisperVQConfig) -> None:
        super().__init__()
        self.config = config
        first, second = CONV_STRIDES
        self.conv1 = CausalConv1d(config.num_mel_bins, config.d_model, KERNEL, first)
        self.conv2 = CausalConv1d(config.d_model, config.d_model, KERNEL, second)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, config.d_model)

    def to_inference(self, device: torch.device, dtype: torch.dtype) -> WhisperVQ:
        """Layers in `dtype`, the codebook in fp32, all on `device`."""
        for name, child in self.named_children():
            child.to(device, torch.float32 if name == "codebook" else dtype)
        return self.eval().requires_grad_(False)

    def forward(self, features: Tensor, num_positions: Tensor) -> Tensor:
        """Log-mel features [B, mels, F] -> codes [B, F / 2 / pooling], int64.

        `num_positions` [B] says how many of the F / 2 positions hold audio: the others are not attended to, and their
        codes mean nothing.
        """
        points = self.points(features, num_positions)
        return nearest(points.flatten(0, 1), self.codebook.weight).unflatten(0, points.shape[:2])

    def points(self, features: Tensor, num_positions: Tensor) -> Tensor:
        """What the codebook is searched for: [B, F / 2 / pooling, D] in fp32."""
        x = functional.gelu(self.conv1(features.to(self.conv1.weight.dtype)))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = block_causal_mask(num_positions, x.shape[1], self.config.quantize_causal_block_size)
        for layer in self.layers:
            x = layer(x, mask)
        return x.float().unflatten(1, (-1, self.config.pooling_kernel_size)).mean(dim=2)


def block_causal_mask(num_positions: Tensor, length: int, block: int) -> Tensor:
    """[B, 1, length, length], true where query q sees key k: k holds audio, and lies before q or in q's block."""
    positions = torch.arange(length, device=num_positions.device)
    ends = (positions // block + 1) * block  # of each query's block: later than q, so all earlier keys are before it
    visible = positions < ends[:, None]
    return (visible & (positions < num_positions[:, None, None]))[:, None]
