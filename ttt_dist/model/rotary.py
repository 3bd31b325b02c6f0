"""Rotary positions, applied while the fused projection is split into query, key and value heads."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttt_dist.config.model import RopeScaling


def rotary_tables(
    position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's angles, [T, head_dim / 2] for positions [T] (RoFormer, arXiv 2104.09864; pairs as in Qwen2).

    Computed once per forward and shared by all layers. Angles are fp32 (fp64 for fp64 models) whatever `dtype` is: bf16
    cannot tell late positions apart.
    """
    exact = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32).to(exact) / head_dim
    # A reciprocal, not a negative exponent: late positions multiply the last digit, which is then that of transformers.
    frequencies = 1.0 / theta**exponents
    if scaling is not None and scaling.type == "llama3":
        frequencies = _stretch(frequencies, scaling)
    angles = position_ids.to(exact).unsqueeze(-1) * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's frequencies: long waves are divided by the factor, short ones stay, a ramp lies between (arXiv 2407.21783)."""
    waves = scaling.original_max_position_embeddings / (2 * math.pi / frequencies)  # how many fit into the first texts
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def split_heads(
    qkv: Tensor, tables: tuple[Tensor, Tensor], num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [T, num_heads, D], key and value [T, num_kv_heads, D] of qkv [T, (num_heads + 2 num_kv_heads) D].

    Queries and keys come out rotated. In qkv each key-value group is contiguous (its queries, its key, its value), so
    that a tensor-parallel rank's slice of the projection is whole groups.
    """
    cos, sin = tables
    if torch.compiler.is_compiling():  # see `ttt_dist.model.layers.swiglu`
        groups = qkv.unflatten(-1, (num_kv_heads, num_heads // num_kv_heads + 2, -1))
        q, k, v = groups.split([num_heads // num_kv_heads, 1, 1], dim=2)
        return _turn(q, cos, sin).flatten(1, 2), _turn(k, cos, sin).flatten(1, 2), v.flatten(1, 2)
    if torch.is_inference_mode_enabled():
        return _split(qkv, cos, sin, num_heads // num_kv_heads, num_kv_heads)
    q, k, v = _SplitHeads.apply(qkv, cos, sin, num_heads // num_kv_heads, num_kv_heads)
    return q, k, v


def _split(qkv: Tensor, cos: Tensor, sin: Tensor, per_group: int, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = qkv.unflatten(-1, (num_groups, per_group + 2, -1))
    cos, sin = cos[:, None, None], sin[:, None, None]
    q = _rotate(groups[..., :per_group, :], cos, sin).flatten(1, 2)
    k = _rotate(groups[..., per_group : per_group + 1, :], cos, sin).flatten(1, 2)
    return q, k, groups[..., per_group + 1, :].contiguous()


class _SplitHeads(torch.autograd.Function):
    """One node for a dozen: the slices' gradients go straight into one buffer, and nothing of size qkv is saved."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, per_group: int, num_groups: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.shape = qkv.shape
        return _split(qkv, cos, sin, per_group, num_groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = (table[:, None, None] for table in ctx.saved_tensors)
        num_groups = grad_k.shape[1]
        per_group = grad_q.shape[1] // num_groups
        grad = grad_q.new_empty(ctx.shape)
        groups = grad.unflatten(-1, (num_groups, per_group + 2, -1))
        _rotate(grad_q.unflatten(1, (num_groups, per_group)), cos, -sin, out=groups[..., :per_group, :])
        _rotate(grad_k.unsqueeze(2), cos, -sin, out=groups[..., per_group : per_group + 1, :])
        groups[..., per_group + 1, :] = grad_v
        return grad, None, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`_rotate` of x [T, G, heads, D] as one differentiable expression."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, None], sin[:, None, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x [..., D] by the tables; minus sin is the inverse and the gradient."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out
