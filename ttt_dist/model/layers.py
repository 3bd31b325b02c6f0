"""What a Transformer is built from: `LayerFactory`, and `PlainFactory` for one process or ZeRO.

The Transformer asks the factory for its layers and knows nothing of how they are split; a tensor-parallel factory gives
layers with the same meaning. Each layer draws its initial weights from (seed, name): they depend neither on the order
nor on the place in which layers are built.
"""

from hashlib import blake2b
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttt_dist.model.loss import LossRows, LossSums, linear_cross_entropy


class LayerFactory(Protocol):
    """Builds layers by name. Linear maps are called by what tensor-parallel ranks split: output or input columns."""

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> nn.Module:
        """Ids [...] to [..., hidden_size]; has `.weight` [num_rows, hidden_size]."""
        ...

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        """Linear map whose outputs are split: `num_blocks` equal blocks, each split on its own (gate and up)."""
        ...

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        """Linear map without bias whose inputs are split; its output is whole."""
        ...

    def norm(self, name: str, hidden_size: int, eps: float) -> nn.Module:
        """RMSNorm."""
        ...

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: nn.Module | None
    ) -> nn.Module:
        """Logits and loss (see `Head`); `tied_to` is the embedding whose weight it shares."""
        ...


class PlainFactory:
    """Ordinary modules; `seed` is that of the initial weights."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> nn.Module:
        return Embedding(self._normal(name, num_rows, hidden_size, std=std))

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        return Linear(self._normal(name, num_out, num_in, std=std), bias)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        return Linear(self._normal(name, num_out, num_in, std=std), bias=False)

    def norm(self, name: str, hidden_size: int, eps: float) -> nn.Module:
        return RMSNorm(hidden_size, eps)

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: nn.Module | None
    ) -> nn.Module:
        if tied_to is not None:
            assert isinstance(tied_to.weight, nn.Parameter)
            return Head(tied_to.weight, num_tokens)
        return Head(self._normal(name, num_rows, hidden_size, std=std), num_tokens)

    def _normal(self, name: str, *shape: int, std: float) -> Tensor:
        digest = blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        # "cpu" and fp32 are explicit: the same numbers on every device and in every precision.
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0, std, generator=generator)


class Embedding(nn.Module):
    """Rows of `weight` by id."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Linear(nn.Module):
    """x @ weight.T + bias; the bias starts at 0."""

    def __init__(self, weight: Tensor, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Head(nn.Module):
    """The output projection. The loss is computed inside its forward: only there does ZeRO-3 hold the whole weight.

    `weight` [V, H] may be the embedding's own Parameter; rows from `num_tokens` on are padding and never predicted.
    """

    def __init__(self, weight: Tensor, num_tokens: int) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        self.num_tokens = num_tokens

    def forward(self, hidden: Tensor, rows: LossRows | None = None) -> LossSums | Tensor:
        """LossSums of hidden [N, H] at `rows`; without rows the logits [..., V], at least fp32, -inf on padding."""
        if rows is not None:
            return linear_cross_entropy(hidden, self.weight, rows, self.num_tokens)
        logits = F.linear(hidden, self.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits[..., self.num_tokens :] = float("-inf")
        return logits


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 F] (arXiv 2002.05202), [..., F]."""
    out: Tensor = _SwiGLU.apply(gate_up)
    return out


class _SwiGLU(torch.autograd.Function):
    """Saves its input only, and writes both gradients into one buffer: a third of the time of autograd's own."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_up)
        grad_gate, grad_up = grads.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grads
