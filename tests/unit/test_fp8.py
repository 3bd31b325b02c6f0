"""fp8 products against rounding to the same formats by hand, and against what is not rounded at all."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.compiling import count, watch_compiler
from tests.unit.test_recompute import CONFIG, new_blocks, plan_of
from ttt_dist.model.fp8 import Fp8Factory, Fp8Linear
from ttt_dist.model.layers import RandomWeights
from ttt_dist.model.transformer import Block, rotary
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import COMPILER, apply_compile

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in fp32, as an 8-bit format holds it when its largest magnitude is the format's."""
    scale = x.abs().max().float() / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype).float() * scale


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("num_tokens", [64, 50])  # kernels want multiples of 16
def test_products_are_those_of_rounded_tensors(num_tokens: int) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((num_tokens, 128), (96, 128), (num_tokens, 96))
    x, weight, upstream = (torch.randn(*shape, generator=random).bfloat16() for shape in shapes)
    layer, leaf = Fp8Linear(weight, None), x.clone().requires_grad_()
    out = layer(leaf)
    found = (out.detach(), *torch.autograd.grad(out, (leaf, layer.weight), upstream))
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}

    def products(x: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x @ weight.T, upstream @ weight, upstream.T @ x

    by_hand = products(rounded(x, E4M3), rounded(weight, E4M3), rounded(upstream, E5M2))
    exact = products(x.float(), weight.float(), upstream.float())
    for mine, same, whole in zip(found, by_hand, exact, strict=True):
        assert error(mine, same) < 3e-3  # rounding of the result to bf16
        assert error(mine, whole) < 0.08  # 3 bits of mantissa, and 2 of gradients


def test_what_is_not_finite_stays_so() -> None:
    x = torch.ones(16, 32, dtype=torch.bfloat16)
    x[3, 4] = float("inf")
    assert not Fp8Linear(torch.ones(16, 32, dtype=torch.bfloat16), None)(x).isfinite().all()


def test_zeros_are_zeros() -> None:
    assert not Fp8Linear(torch.zeros(16, 32, dtype=torch.bfloat16), None)(torch.zeros(8, 32).bfloat16()).any()


def gradients(blocks: list[Block]) -> list[Tensor]:
    """Output and gradients in fp32."""
    num_tokens, hidden_size = 256, CONFIG.hidden_size
    random = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, hidden_size, generator=random).bfloat16().requires_grad_()
    y, tables = x, rotary(CONFIG, torch.arange(num_tokens), torch.bfloat16)
    for block in blocks:
        y = block(y, tables, plan_of("buckets", 0))
    (y.float() * torch.linspace(-1, 1, hidden_size)).sum().backward()
    found = [y.detach(), x.grad, *(p.grad for block in blocks for p in block.parameters())]
    return [tensor.float() for tensor in found if tensor is not None]


def fp8_blocks() -> list[Block]:
    factory = Fp8Factory(RandomWeights(), dtype=torch.bfloat16)
    return [Block(CONFIG, factory, f"blocks.{index}") for index in range(CONFIG.num_layers)]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_in_fp8(monkeypatch: pytest.MonkeyPatch, checkpointing: str, compiled: bool) -> None:
    """Whatever runs them, they are near bf16's; compiled they are one graph, and `selective` keeps the wide product."""
    graphs = watch_compiler(monkeypatch)
    blocks = fp8_blocks()
    apply_activation_checkpointing(blocks, CONFIG.hidden_size, checkpointing, compiled)
    if compiled:
        apply_compile(blocks)
    found, plain = gradients(blocks), gradients([block.bfloat16() for block in new_blocks()])
    assert all(error(one, other) < 0.15 for one, other in zip(found, plain, strict=True))
    assert any(error(one, other) > 1e-3 for one, other in zip(found, plain, strict=True))
    if compiled:
        assert COMPILER.num_graphs == 1 and not counters["graph_break"]
        assert count(graphs.backward[0], "_scaled_mm") == 4 + (checkpointing == "full")
