"""Checkpointing and compilation of blocks: one graph without breaks, what it keeps, and what its backward pass does again.

On CPU, with the compiler's own choice of what is kept. FlexAttention stands for CUDA: it has a backward pass here when it
is not asked for its device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from tests.compiling import Graphs, count, watch_compiler
from ttt_dist.config.model import ModelConfig
from ttt_dist.model.attention import flex
from ttt_dist.model.attention.flex import FlexPlan
from ttt_dist.model.attention.plan import AttentionPlan, attention_plan
from ttt_dist.model.layers import LocalLayerFactory
from ttt_dist.model.transformer import Block, rotary
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import COMPILER, apply_compile

CONFIG = ModelConfig(hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, ffn_hidden_size=160, qkv_bias=True)
NUM_TOKENS = 256
PLANS: dict[str, Callable[[Tensor, Tensor], AttentionPlan]] = {"buckets": attention_plan, "flex": FlexPlan.build}


def new_blocks() -> list[Block]:
    return [Block(CONFIG, LocalLayerFactory(), f"blocks.{index}") for index in range(CONFIG.num_layers)]


def plan_of(kind: str, seed: int) -> AttentionPlan:
    """Samples of another length for each seed, with a span each, and some padding."""
    length = 16 << seed
    position = torch.arange(NUM_TOKENS) % length
    sample_ids = (torch.arange(NUM_TOKENS) // length + 1).unsqueeze(0)
    sample_ids[0, -seed - 1 :] = 0
    return PLANS[kind](sample_ids, ((position > 3) & (position < 12)).long().unsqueeze(0))


def run(blocks: list[Block], plan: AttentionPlan, seed: int = 0) -> list[Tensor]:
    """Output and all gradients."""
    x = torch.randn(NUM_TOKENS, CONFIG.hidden_size, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    tables, y = rotary(CONFIG, torch.arange(NUM_TOKENS), torch.float32), x
    for block in blocks:
        block.zero_grad()
        y = block(y, tables, plan)
    (y * torch.linspace(-1, 1, CONFIG.hidden_size)).sum().backward()
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    return [y.detach(), *(tensor.grad.clone() for tensor in (x, *parameters) if tensor.grad is not None)]


def run_compiled(monkeypatch: pytest.MonkeyPatch, checkpointing: str, kind: str) -> Graphs:
    """Three batches of unlike structure through compiled blocks, compared with plain ones."""
    graphs = watch_compiler(monkeypatch)
    blocks = new_blocks()
    apply_activation_checkpointing(blocks, CONFIG.hidden_size, checkpointing, compiled=True)
    apply_compile(blocks)
    for seed in range(3):
        found, wanted = run(blocks, plan_of(kind, seed), seed), run(new_blocks(), plan_of("buckets", seed), seed)
        assert len(found) == len(wanted) == 2 + 7 * CONFIG.num_layers
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    return graphs


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_all_blocks_and_batches_are_one_graph(monkeypatch: pytest.MonkeyPatch, checkpointing: str, kind: str) -> None:
    graphs = run_compiled(monkeypatch, checkpointing, kind)
    assert COMPILER.num_graphs == len(graphs.forward) == len(graphs.backward) == 1
    assert graphs.num_calls["forward"] == 3 * CONFIG.num_layers
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize(
    ("checkpointing", "products", "attentions"),
    [("none", 0, 0), ("selective", 1, 0), ("full", 3, 1)],  # the out-projection; and query-key-value, gate and up
)
def test_the_backward_pass_does_again(
    monkeypatch: pytest.MonkeyPatch, checkpointing: str, products: int, attentions: int, kind: str
) -> None:
    (backward,) = run_compiled(monkeypatch, checkpointing, kind).backward
    assert count(backward, "mm", "addmm") == 2 * 4 + products  # each of four matrices has two gradients
    assert count(backward, "attend_buckets", "flex_attention") == attentions
    assert count(backward, "attend_buckets_backward", "flex_attention_backward") == 1


def widths_kept(graph: torch.fx.GraphModule) -> list[int]:
    """Elements per token of what a forward graph computes and hands to the backward pass."""
    outputs: Any = next(node.args[0] for node in graph.graph.nodes if node.op == "output")
    made = [node for node in outputs[1:] if node.op != "placeholder"]
    return sorted(node.meta["val"].numel() // NUM_TOKENS for node in made)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "log_sums"), [("buckets", []), ("flex", [CONFIG.num_heads])])
def test_selective_keeps_attention_and_what_widens(
    monkeypatch: pytest.MonkeyPatch, kind: str, log_sums: list[int]
) -> None:
    """And the block's input, which is no output of the graph."""
    (forward,) = run_compiled(monkeypatch, "selective", kind).forward
    projection, attended, gate_up = 64 + 2 * 32, 64, 2 * CONFIG.ffn_hidden_size
    assert widths_kept(forward) == sorted([projection, attended, gate_up, *log_sums])


@pytest.mark.slow
def test_full_keeps_the_input_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (forward,) = run_compiled(monkeypatch, "full", "flex").forward
    assert widths_kept(forward) == []


def test_a_partial_is_compiled_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `apply_activation_checkpointing` makes a function, and why graphs are counted."""
    watch_compiler(monkeypatch)
    block: nn.Module = new_blocks()[0]
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    block.compile(backend=COMPILER, dynamic=False, fullgraph=True)
    run([block], plan_of("buckets", 0))  # type: ignore[list-item]
    assert COMPILER.num_graphs == 0


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "forwards"), [("none", 1), ("selective", 2), ("full", 2)])
def test_eager_checkpointing_does_not_see_a_compiled_kernel(
    monkeypatch: pytest.MonkeyPatch, checkpointing: str, forwards: int
) -> None:
    """On CUDA FlexAttention is compiled by itself where blocks are not: `selective` computes it again."""
    graphs = watch_compiler(monkeypatch)
    kernel = torch.compile(flex_attention, backend=graphs.backend(), dynamic=False, fullgraph=True)
    monkeypatch.setattr(flex, "_compiled", lambda: kernel)
    blocks = new_blocks()
    apply_activation_checkpointing(blocks, CONFIG.hidden_size, checkpointing, compiled=False)
    run(blocks, plan_of("flex", 0))
    assert graphs.num_calls == {"forward": forwards * CONFIG.num_layers, "backward": CONFIG.num_layers}
