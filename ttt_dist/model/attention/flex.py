"""Attention over packed samples by FlexAttention (arXiv 2412.05496): a block mask made from boundaries alone.

Every query sees one interval of keys, so the queries of a block see every key of some blocks, a part of a few others,
and nothing of the rest. Two integers per token and their minima and maxima per block say which: no pair of tokens is
looked at outside the kernel, and none at all in blocks that are seen wholly or not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ttt_dist.sequence.visibility import visible_end

BLOCK_SIZE = 128
# Kernel options by the width of a head, on CUDA. Compiled for sm_90 at T = 8,192 (triton 3.6, ptxas -v), the forward kernel with
# heads of 64 spills 278 registers as torch sets it up, and none with 8 warps; with heads of 128 it spills none as it is.
KERNEL_OPTIONS: dict[int, Any] = {64: {"fwd_num_warps": 8}}


@dataclass
class FlexPlan:
    """Block mask of a batch whose rows are laid end to end."""

    block_mask: BlockMask

    @classmethod
    def build(cls, sample_ids: Tensor, span_ids: Tensor, block_size: int = BLOCK_SIZE) -> "FlexPlan":
        """Plan for ids [B, S], on their device and without waiting for it. Samples must be contiguous in their row."""
        starts, ends = visible_intervals(sample_ids, span_ids)
        return cls(interval_block_mask(starts, ends, block_size))


def attend_flex(q: Tensor, k: Tensor, v: Tensor, plan: FlexPlan) -> Tensor:
    """See `ttt_dist.model.attention.plan.attend`."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    attention = flex_attention if torch.compiler.is_compiling() else _compiled()  # a compiled block compiles it too
    options = KERNEL_OPTIONS.get(q.shape[-1]) if q.is_cuda else None
    out = cast(Tensor, attention(q, k, v, block_mask=plan.block_mask, enable_gqa=True, kernel_options=options))
    return out.squeeze(0).transpose(0, 1)


@cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention, compiled at the first call of each shape. Made when needed: the compiler takes a second to import.

    fullgraph, because beyond torch's limit of shapes it would otherwise run uncompiled, with all T x T scores.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def visible_intervals(sample_ids: Tensor, span_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [start, end) that each token of ids [B, S] sees, as indices into the flattened batch: int32 [B * S] each.

    Padding sees nothing: it starts at B * S and ends at 0.
    """
    num_rows, seq_len = sample_ids.shape
    index = torch.arange(num_rows * seq_len, device=sample_ids.device).view(num_rows, seq_len)
    begins = torch.ones_like(sample_ids, dtype=torch.bool)
    begins[:, 1:] = sample_ids[:, 1:] != sample_ids[:, :-1]
    starts = torch.where(begins, index, 0).flatten().cummax(0).values
    ends = visible_end(sample_ids, span_ids) + index[:, :1]
    real = sample_ids.flatten() != 0
    return torch.where(real, starts, real.numel()).int(), torch.where(real, ends.flatten(), 0).int()


def interval_block_mask(starts: Tensor, ends: Tensor, block_size: int) -> BlockMask:
    """The BlockMask of `visible_intervals`, exact: no block is listed in vain, none is called partial that is full.

    A block of queries sees no key block but those that [least start, greatest end) touches, and sees all of those
    within [greatest start, least end). A token sees itself, so the intervals of a block of neighbours leave no gap
    outside that block.
    """
    num_tokens = len(starts)
    num_blocks = -(-num_tokens // block_size)

    # What the kernel asks in partial blocks only. It is compiled into it; the two tensors are inputs of the compiled graph, so
    # another batch of the same shape compiles nothing.
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (kv >= starts[q]) & (kv < ends[q])

    fill = num_blocks * block_size - num_tokens  # the last block's missing queries are padding
    first = F.pad(starts, (0, fill), value=num_tokens).view(num_blocks, block_size)
    last = F.pad(ends, (0, fill), value=0).view(num_blocks, block_size)
    # A block is touched if any of its queries sees a key of it (from the least start to the greatest end, rounded outwards),
    # and full if all of them see all its keys (from the greatest start to the least end, rounded inwards). So blocks
    # [low, high) are listed, of these [full_low, full_high) as full ones; the maxima and minima below keep every range
    # from being negative where there is nothing but padding (start T, end 0), or no full block.
    low = first.amin(1) // block_size
    high = torch.maximum(-(-last.amax(1) // block_size), low)
    full_low = torch.minimum(-(-first.amax(1) // block_size), high)
    full_high = torch.maximum(last.amin(1) // block_size, full_low)
    num_full = full_high - full_low
    num_partial = high - low - num_full

    # Row i of a list starts with the blocks of query block i, in order; what follows them is not read, but must be a block
    # that exists. The partial ones are low, low + 1, ... with a jump over the full ones, which lie in their midst. All is
    # arithmetic on [blocks, blocks] numbers on the device: no size depends on a value, so nothing waits for one.
    rank = torch.arange(num_blocks, device=starts.device, dtype=starts.dtype)
    partial = low[:, None] + rank
    partial = torch.where(partial < full_low[:, None], partial, partial + num_full[:, None])
    full = full_low[:, None] + rank
    return BlockMask.from_kv_blocks(
        num_partial[None, None],  # one list for all heads
        partial.clamp(max=num_blocks - 1)[None, None],
        num_full[None, None],
        full.clamp(max=num_blocks - 1)[None, None],
        block_size,
        mask_mod,
        (num_tokens, num_tokens),
    )
