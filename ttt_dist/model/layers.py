"""What a Transformer is built from: `LayerFactory`, and `LocalLayerFactory` for one process or ZeRO.

The Transformer asks the factory for its layers and knows nothing of how they are split; a tensor-parallel factory gives
layers with the same meaning. Hidden states are [T, H], T being all tokens of a batch: layers that are split over the
sequence hold a part of T. First weights come from a `WeightSource`, one parameter at a time and by name: they depend
neither on the order nor on the place in which layers are built.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttt_dist.config.model import LoraConfig
from ttt_dist.model.attention.plan import AttentionPlan, attend
from ttt_dist.model.cross_entropy import VocabularySlice
from ttt_dist.model.lora import Adapter, Adapters, first_std
from ttt_dist.model.loss import LossRows, LossSums, linear_cross_entropy
from ttt_dist.model.products import linear
from ttt_dist.model.structure import Factory


class WeightSource(Protocol):
    """Where first weights come from: drawn, or read from a checkpoint."""

    def __call__(self, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        """Parameter `name` (such as blocks.0.mlp.down.weight) on the CPU, of any type; where drawn, from normal(mean, std)."""
        ...


class RandomWeights:
    """Weights drawn from (seed, name)."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        # torch.normal and "cpu": neither the device nor zero.Init, which swaps torch.empty for its own, changes a number.
        digest = blake2b(f"{self.seed}/{name.removesuffix('.weight')}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.normal(mean, std, shape, generator=generator, dtype=torch.float32, device="cpu")


def zero_weights(name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
    """Storage for weights that are about to be read from elsewhere."""
    return torch.zeros(shape)


class SequenceSharding(Protocol):
    """Which tokens this process computes hidden states of, and how attention reaches the others."""

    def local_tokens(self, num_tokens: int) -> slice:
        """The part of a batch's T tokens."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        """Attention of this process's tokens, as `ttt_dist.model.attention.plan.attend`; `plan` is that of all T."""
        ...


class NoSharding:
    """All tokens: nothing is split."""

    def local_tokens(self, num_tokens: int) -> slice:
        return slice(0, num_tokens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        return attend(q, k, v, plan)


class LayerFactory(Factory[nn.Module], Protocol):
    """Builds the layers that `ttt_dist.model.structure` lists."""

    sequence_sharding: SequenceSharding


class LocalLayerFactory:
    """Ordinary modules, with parameters of type `dtype`."""

    size = 1
    """Processes that a layer is split over."""

    def __init__(
        self,
        weights: WeightSource | None = None,
        sequence_sharding: SequenceSharding | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = weights or RandomWeights()
        self.sequence_sharding = sequence_sharding or NoSharding()
        self.dtype = dtype

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> nn.Module:
        return Embedding(self._weight(f"{name}.weight", (num_rows, hidden_size), std))

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        return Linear(
            self._weight(f"{name}.weight", (num_out, num_in), std),
            self._weight(f"{name}.bias", (num_out,)) if bias else None,
        )

    def qkv_linear(
        self, name: str, num_in: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, std: float
    ) -> nn.Module:
        return self.column_linear(name, num_in, (num_heads + 2 * num_kv_heads) * head_dim, bias, std)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        return Linear(self._weight(f"{name}.weight", (num_out, num_in), std), None)

    def lora(
        self, name: str, num_in: int, parts: Mapping[str, int], num_groups: int, lora: LoraConfig, splits_inputs: bool
    ) -> nn.Module:
        """Adapters of a linear map of which a process has its share of the outputs, or of the inputs where `splits_inputs`."""
        adapters: dict[str, Adapter] = {
            part: self._adapter(
                self._slice(f"{name}.{part}.lora_A", (lora.r, num_in), first_std(num_in)),
                self._slice(f"{name}.{part}.lora_B", (size, lora.r)),
                splits_inputs,
            )
            for part, size in parts.items()
            if part in lora.target_modules
        }
        split = 1 if splits_inputs else self.size
        own = {part: size // split for part, size in parts.items()}
        return Adapters(adapters, own, max(num_groups // split, 1), lora.lora_alpha / lora.r)

    def _adapter(self, lora_a: Tensor, lora_b: Tensor, splits_inputs: bool) -> Adapter:
        return Adapter(nn.Parameter(lora_a), nn.Parameter(lora_b))

    def norm(self, name: str, size: int, eps: float, of_heads: bool = False) -> nn.Module:
        return RMSNorm(self._weight(f"{name}.weight", (size,), mean=1.0), eps)

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: nn.Module | None
    ) -> nn.Module:
        if tied_to is not None:
            assert isinstance(tied_to.weight, nn.Parameter)
            return Head(tied_to.weight, num_tokens)
        return Head(nn.Parameter(self._weight(f"{name}.weight", (num_rows, hidden_size), std)), num_tokens)

    def _slice(self, name: str, shape: tuple[int, ...], std: float = 0.0) -> Tensor:
        """What this process has of a weight of `shape`."""
        return self._weight(name, shape, std)

    def _weight(self, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        return self.weights(name, shape, std, mean).to(self.dtype)


class Embedding(nn.Module):
    """Rows of `weight` by id."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Linear(nn.Module):
    """x @ weight.T + bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def lay_transposed(model: nn.Module) -> None:
    """Lay the fp32 weight of every Linear on the CPU as [K, N] in memory, one after the other; shapes and numbers stay.

    Products of it are not only faster: what a row gives does not depend on the others, to the last bit (a single row would
    take another kernel, but `linear` makes two of it).
    """
    for layer in model.modules():
        if isinstance(layer, Linear) and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            layer.weight.data = layer.weight.data.T.contiguous().T


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467)."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `RMSNorm`; x [..., K], weight [K]."""
    is_here = x.device.type == "cpu" and x.dtype == torch.float32
    if not is_here or torch.compiler.is_compiling():  # CUDA and the compiler have kernels of their own
        return F.rms_norm(x, weight.shape, weight, eps)
    out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    """Ten passes over x where autograd's own, which differentiates torch's nine operations one by one, takes twenty."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        product = grad * normal
        grad_weight = product.flatten(0, -2).sum(0)
        share = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = torch.mul(grad, weight, out=product).addcmul_(normal, share, value=-1).mul_(scale)
        return grad_x, grad_weight, None


class Head(nn.Module):
    """The output projection. The loss is computed inside its forward: only there does ZeRO-3 hold the whole weight.

    `weight` [V, H] may be the embedding's own Parameter; rows from `num_tokens` on are padding and never predicted.
    """

    def __init__(self, weight: nn.Parameter, num_tokens: int) -> None:
        super().__init__()
        self.weight = weight
        self.num_tokens = num_tokens

    def forward(self, hidden: Tensor, rows: LossRows | None = None) -> LossSums | Tensor:
        """LossSums at `rows` of hidden [T, H]; without rows the logits [..., V], at least fp32, -inf on padding."""
        if rows is not None:
            whole = VocabularySlice(0, self.num_tokens)
            return linear_cross_entropy(hidden.index_select(0, rows.rows), self.weight, rows, whole)
        logits = self.product(hidden.reshape(-1, hidden.shape[-1]), slice(0, self.num_rows))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits[..., self.num_tokens :] = float("-inf")
        return logits.view(*hidden.shape[:-1], self.num_rows)  # [V] of one position, and none of none

    @property
    def num_rows(self) -> int:
        """Of the weight, padding included."""
        return len(self.weight)

    def product(self, hidden: Tensor, rows: slice) -> Tensor:
        """hidden [T, H] @ weight[rows].T."""
        return linear(hidden, self.weight[rows])


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., 2 F] (arXiv 2002.05202), [..., F]."""
    if torch.compiler.is_compiling():  # the compiler fuses it itself, and may not follow writes into parts of a buffer
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    if torch.is_inference_mode_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
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
