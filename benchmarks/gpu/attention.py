"""FlexAttention against fp32 attention under the dense mask: output and gradients, beside bf16's own error, and its speed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.contestants import additive_mask, dense_attention
from benchmarks.gpu.batches import draw_batches
from benchmarks.gpu.clock import milliseconds
from benchmarks.gpu.setting import Figures, Measurement, Setting
from ttt_dist.model.attention.flex import FlexPlan
from ttt_dist.model.attention.plan import attend, attention_plan
from ttt_dist.sequence.batch import Batch

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

HEADS = [
    (12, 2, 128),
    (14, 2, 64),
    (16, 2, 128),
    (16, 16, 64),
]  # queries, keys and values, width; Qwen2.5's and one without groups
DTYPE = torch.bfloat16  # on the CPU too
OPTIONS = [{"fwd_num_warps": 4}, {"fwd_num_warps": 8}, {"bwd_num_warps": 4}, {"bwd_num_warps": 8}]
FORWARD_FLOP, BOTH_FLOP = 4, 14  # of a visible pair, per head and unit of width


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Heads of every width on one long pack, those of 1.5B on several; then the kernels' options."""
    if not setting.on_cuda:
        yield "4/2 heads of 16, 1 x 2048", partial(measure_shape, setting, (4, 2, 16), 1, 2048)
    else:
        for heads, rows, seq_len in [(heads, 1, 8192) for heads in HEADS] + [(HEADS[0], 4, 4096)]:
            name = f"{heads[0]}/{heads[1]} heads of {heads[2]}, {rows} x {seq_len}"
            yield name, partial(measure_shape, setting, heads, rows, seq_len)
    for heads in HEADS[:2]:
        yield f"options, heads of {heads[2]}", partial(measure_options, setting, heads)


def measure_shape(setting: Setting, heads: tuple[int, int, int], rows: int, seq_len: int) -> Figures:
    """Relative errors of norms, and the largest of them over that of dense attention in the same type; speed."""
    (batch,) = draw_batches(setting, 1, rows, seq_len)
    q, k, v, upstream = random_heads(setting, batch, heads)
    plan = attention_plan(batch.sample_ids, batch.span_ids, DTYPE)
    ours = with_gradients((q, k, v), upstream, partial(attend, plan=plan))
    dense, exact = (
        with_gradients(
            [x.to(dtype) for x in (q, k, v)],
            upstream.to(dtype),
            partial(dense_attention, mask=additive_mask(batch, dtype)),
        )
        for dtype in (DTYPE, torch.float32)
    )
    errors = [[relative(part, wanted) for part, wanted in zip(side, exact, strict=True)] for side in (ours, dense)]
    figures: Figures = dict(zip(("output_error", "q_error", "k_error", "v_error"), errors[0], strict=True))
    figures["over_dense"] = max(mine / theirs for mine, theirs in zip(*errors, strict=True))
    return figures | speed(setting, batch, (q, k, v), upstream, partial(attend, plan=plan))


def measure_options(setting: Setting, heads: tuple[int, int, int]) -> Figures:
    """Milliseconds of forward, and of both passes, by what torch lets one choose of the kernels."""
    setting.require_cuda("kernels of FlexAttention")
    (batch,) = draw_batches(setting, 1, 1, setting.seq_len)
    *inputs, upstream = random_heads(setting, batch, heads)
    plan = FlexPlan.build(batch.sample_ids, batch.span_ids)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    found: Figures = {}
    for options in OPTIONS:

        def attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, int] = options) -> Tensor:
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
            out: Tensor = compiled(q, k, v, block_mask=plan.block_mask, enable_gqa=True, kernel_options=options)
            return out.squeeze(0).transpose(0, 1)

        times = speed(setting, batch, inputs, upstream, attention)
        name = " ".join(f"{option}={value}" for option, value in options.items())
        found |= {f"{name} {key}": times[key] for key in ("forward_ms", "both_ms")}
    return found


def random_heads(setting: Setting, batch: Batch, heads: tuple[int, int, int]) -> list[Tensor]:
    """Queries, keys, values and an output's gradient, [T, heads, width] each; padding has no gradient."""
    num_heads, num_groups, width = heads
    generator = torch.Generator(setting.device).manual_seed(0)
    shapes = [(batch.input_ids.numel(), number, width) for number in (num_heads, num_groups, num_groups, num_heads)]
    drawn = [torch.randn(shape, generator=generator, device=setting.device).to(DTYPE) for shape in shapes]
    drawn[-1][batch.sample_ids.flatten() == 0] = 0
    return drawn


def with_gradients(inputs: Sequence[Tensor], upstream: Tensor, attention: Attention) -> list[Tensor]:
    """Output, where it has a gradient, and the gradients of q, k, v."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves)
    real = upstream.flatten(1).any(1)
    return [out.detach() * real[:, None, None], *torch.autograd.grad(out, leaves, upstream)]


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.float() - wanted).norm() / wanted.norm())


def speed(setting: Setting, batch: Batch, inputs: Sequence[Tensor], upstream: Tensor, attention: Attention) -> Figures:
    """Milliseconds, and TFLOP/s of the pairs that are visible."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.no_grad():
        forward_ms = milliseconds(lambda: attention(*leaves), setting)
    both_ms = milliseconds(lambda: torch.autograd.grad(attention(*leaves), leaves, upstream), setting)
    work = upstream.shape[1] * upstream.shape[2] * batch.visible_pairs / 1e9  # GFLOP, so that ms give TFLOP/s
    rates = {"forward_tflops": FORWARD_FLOP * work / forward_ms, "both_tflops": BOTH_FLOP * work / both_ms}
    return {"forward_ms": forward_ms, "both_ms": both_ms, **rates}
