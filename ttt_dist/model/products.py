"""Products with weights on the CPU in fp32, by oneDNN.

BLAS as torch ships it (MKL) runs its kernels for 256-bit registers on processors that are not Intel's; oneDNN, which
torch has too, uses what the processor has: measured on a Zen 5, twice the speed in forward products and gradients of
activations, 1.3 to 1.9 times in gradients of weights. torch takes it for bf16 but offers it for fp32 in one operator only,
which its compiler puts in place of linear layers; where a build lacks that, BLAS does all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ONEDNN: Any = None
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    ONEDNN = torch.ops.mkldnn._linear_pointwise.default
IS_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Up to so many rows: multiples of; never a single row.
ROW_STEPS: tuple[tuple[int, int], ...] = ((32, 2), (256, 8), (2048, 32), (2049, 256))
# Of a transposed weight without AVX-512: oneDNN takes six rows at a time, up to three that are left by another kernel, and all by
# yet another where 1 / rows + 1 / N is below 0.0038, each with other last bits; and threads share many, with remainders of their own.
NARROW_ROW_STEPS: tuple[tuple[int, int], ...] = ((36, 6), (48, 12))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] @ weight [N, K].T + bias [N], [T, N], differentiable.

    A part of a transposed weight (`ttt_dist.model.layers.lay_transposed`) must not come here: oneDNN has no kernel for it
    but a loop.
    """
    if not _takes(x, weight) or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else _few_shapes(x, weight, bias)
    return out


def _few_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` without a gradient, where every call may have another number of rows.

    They are filled up with zeros to a number out of few: oneDNN keeps a kernel for each, half a megabyte of code. What a row
    gives depends on itself alone, to the last bit, where the weight is transposed.
    """
    num_rows, steps = len(x), ROW_STEPS
    if not IS_WIDE and weight.stride(0) == 1:
        steps, (most_rows, _) = NARROW_ROW_STEPS, NARROW_ROW_STEPS[-1]
        if num_rows > most_rows:
            return torch.cat([_few_shapes(rows, weight, bias) for rows in x.split(most_rows)])
    step = next((step for most, step in steps if num_rows <= most), steps[-1][1])
    padded = F.pad(x, (0, 0, 0, -num_rows % step)) if num_rows % step else x.contiguous()
    out: Tensor = ONEDNN(padded, weight, bias, "none", [], "")
    return out[:num_rows]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [N, K].T, [M, N], without a gradient. Best where a is contiguous; b may be a transposed view."""
    return ONEDNN(a, b, None, "none", [], "") if _takes(a, b) else a @ b.T


def _takes(a: Tensor, b: Tensor) -> bool:
    is_fp32 = a.dtype == b.dtype == torch.float32
    return ONEDNN is not None and is_fp32 and a.device.type == "cpu" and a.dim() == 2 and a.numel() > 0 < b.numel()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        out: Tensor = ONEDNN(x, weight, bias, "none", [], "")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = product(grad, weight.T) if needs_x else None
        grad_weight = _transposed_product(grad, x) if needs_weight else None
        return grad_x, grad_weight, grad.sum(0) if needs_bias and ctx.has_bias else None


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a [T, N].T @ b [T, K], [N, K]. The narrower one is copied into the other layout, which takes a third of the time."""
    return product(a.T, b.T) if a.shape[1] <= b.shape[1] else product(b.T, a.T).T.contiguous()
