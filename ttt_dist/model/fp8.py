"""The MLP's products in 8-bit floating point (arXiv 2209.05433): twice the peak of bf16 on GPUs that have it.

Each tensor is divided by a scale of its own, its largest magnitude over the format's, at every use. Activations and weights
are e4m3 (3 bits of mantissa), gradients e5m2 (more range). Sums are exact to fp32, results bf16, and so are the gradients
that autograd sees. On CPU the same operator does the same, slowly.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttt_dist.model.layers import Linear, LocalLayerFactory

MULTIPLE = 16  # of every size of a product, as the kernels ask
TINY = 1e-12


class Fp8Factory(LocalLayerFactory):
    """`LocalLayerFactory`, but gate, up and down multiply in fp8. Their weights stay what they are."""

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        if ".mlp." not in name:
            return super().column_linear(name, num_in, num_out, bias, std, num_blocks)
        assert not bias
        return Fp8Linear(self._weight(f"{name}.weight", (num_out, num_in), std), None)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        if ".mlp." not in name:
            return super().row_linear(name, num_in, num_out, std)
        return Fp8Linear(self._weight(f"{name}.weight", (num_out, num_in), std), None)


class Fp8Linear(Linear):
    """x @ weight.T, and both gradients, in fp8."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, self.weight)
        return out


class Scaled(NamedTuple):
    """`values` times `scale` is the tensor."""

    values: Tensor
    scale: Tensor


def quantise(x: Tensor, dtype: torch.dtype) -> Scaled:
    """x in an 8-bit format, its largest magnitude at the format's. Not finite in, not finite out."""
    scale = x.abs().amax().float().clamp(min=TINY) / torch.finfo(dtype).max
    return Scaled((x.float() / scale).to(dtype), scale)


class _Product(torch.autograd.Function):
    """Saves x in fp8, and the weight itself, which is quantised again: a second copy of all weights would be dear."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, w8 = quantise(x, torch.float8_e4m3fn), quantise(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(*x8, weight)
        return _multiply(x8.values, w8.values, x8.scale, w8.scale, is_exact=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, x_scale, weight = ctx.saved_tensors
        w8, g8 = quantise(weight, torch.float8_e4m3fn), quantise(grad, torch.float8_e5m2)
        grad_x = _multiply(g8.values, w8.values.t().contiguous(), g8.scale, w8.scale)
        grad_weight = _multiply(_by_column(g8.values), _by_column(x), g8.scale, x_scale)
        return grad_x, grad_weight


def _multiply(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, is_exact: bool = True) -> Tensor:
    """a [M, K] @ b [N, K].T in bf16: the kernels want both row by row. Gradients are summed with full accumulators."""
    return torch._scaled_mm(
        a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=not is_exact
    )


def _by_column(x: Tensor) -> Tensor:
    """x [T, K] as [K, T], T filled up with zeros."""
    return F.pad(x.t(), (0, -len(x) % MULTIPLE)).contiguous()
