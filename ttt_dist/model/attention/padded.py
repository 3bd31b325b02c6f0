"""Attention over packed samples by buckets: short samples side by side, one call of SDPA for each length.

A pack holds many short samples, so a mask over the whole pack would be almost empty. `BucketedSdpaPlan` groups the samples
of a batch by length into a few buckets; each bucket is one call of SDPA over [samples, heads, length, head_dim] with a
mask of its own small size. The plan is built once per forward and serves every layer.

Its shapes are new in every batch. In a compiled block all of it is therefore one operator, which takes the plan as an
object that the compiler does not look into.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase
from torch.autograd.function import once_differentiable

from ttt_dist.sequence.visibility import visible_end

# Longer samples attend a slice of queries at a time: keys after the last visible one are skipped, and so is their mask.
QUERY_CHUNK = 512
# Costs in units of one (query, key) pair, measured on CPU: a call of SDPA, and moving one token there and back.
CALL_COST = 4000
TOKEN_COST = 8


class QueryChunk(NamedTuple):
    """Queries [start, end) of every sample of a bucket see keys [0, num_keys) by `mask`; no mask: causal."""

    start: int
    end: int
    num_keys: int
    mask: Tensor | None
    """0 or -inf, [n, 1, end - start, num_keys]. Were it bool, every layer would make and keep a float copy of it."""


class Bucket(NamedTuple):
    """`num_samples` samples side by side, each padded to `length` slots."""

    num_samples: int
    length: int
    chunks: list[QueryChunk]


@dataclass(eq=False, kw_only=True)
class BucketedSdpaPlan(OpaqueBase):
    """Where each token of a batch [B, S] goes, and which masks apply there.

    Slots are the buckets laid end to end. `to_slots` [slots] names the token of each slot and `to_tokens` [B * S] the
    slot of each token; both point anywhere at `empty_slots` and `padding`, which are filled with zeros.
    """

    to_slots: Tensor
    empty_slots: Tensor
    to_tokens: Tensor
    padding: Tensor
    buckets: list[Bucket]

    @classmethod
    def build(cls, sample_ids: Tensor, span_ids: Tensor, dtype: torch.dtype = torch.float32) -> "BucketedSdpaPlan":
        """Plan for ids [B, S]; `dtype` is that of the queries. Samples must be contiguous in their row."""
        num_rows, seq_len = sample_ids.shape
        ids = sample_ids.reshape(-1).cpu().numpy()
        offsets = torch.arange(num_rows).unsqueeze(1) * seq_len
        ends = (visible_end(sample_ids, span_ids).cpu() + offsets).reshape(-1).numpy()
        starts, lengths = _samples(ids, seq_len)
        tables, buckets, first = [], [], 0
        for members in _group(lengths):
            length = int(lengths[members].max())
            tokens = starts[members, None] + np.arange(length)  # [n, length]
            real = np.arange(length) < lengths[members, None]
            # An empty slot sees what a causal token would: softmax needs one key, and nothing reads the result.
            last = np.where(real, ends[np.where(real, tokens, 0)] - starts[members, None], np.arange(1, length + 1))
            buckets.append(Bucket(len(members), length, _chunks(last, dtype, sample_ids.device)))
            tables.append((np.where(real, tokens, -1).reshape(-1), first))
            first += tokens.size
        if not tables:  # nothing but padding: one empty slot keeps every shape and the graph
            tables, buckets = [(np.array([-1]), 0)], [Bucket(1, 1, [QueryChunk(0, 1, 1, None)])]
        return cls._from_slots(np.concatenate([table for table, _ in tables]), len(ids), buckets, sample_ids.device)

    @classmethod
    def _from_slots(
        cls, slots: np.ndarray, num_tokens: int, buckets: list[Bucket], device: torch.device
    ) -> "BucketedSdpaPlan":
        """Finish a plan from the token of each slot (-1: empty)."""
        tokens = np.full(num_tokens, -1)
        used = np.flatnonzero(slots >= 0)
        tokens[slots[used]] = used
        tables = (slots.clip(min=0), np.flatnonzero(slots < 0), tokens.clip(min=0), np.flatnonzero(tokens < 0))
        to_slots, empty_slots, to_tokens, padding = (torch.from_numpy(table).to(device) for table in tables)
        return cls(to_slots=to_slots, empty_slots=empty_slots, to_tokens=to_tokens, padding=padding, buckets=buckets)


def attend_buckets(q: Tensor, k: Tensor, v: Tensor, plan: BucketedSdpaPlan) -> Tensor:
    """See `ttt_dist.model.attention.plan.attend`."""
    if torch.compiler.is_compiling():
        out: Tensor = _compiled_buckets(q, k, v, plan)
        return out
    return _leave(torch.cat([_attend_bucket(*parts) for parts in _enter((q, k, v), plan)]), plan)


def _enter(tensors: tuple[Tensor, ...], plan: BucketedSdpaPlan) -> Iterator[tuple[Any, ...]]:
    """Rows [T, ...] of each tensor moved into slots: for each bucket its part of every tensor, and itself."""
    sizes = [bucket.num_samples * bucket.length for bucket in plan.buckets]
    there = (plan.to_slots, plan.empty_slots, plan.to_tokens, plan.padding)
    slots = [_MoveRows.apply(x, *there).split(sizes) for x in tensors]
    return zip(*slots, plan.buckets, strict=True)


def _leave(slots: Tensor, plan: BucketedSdpaPlan) -> Tensor:
    """The inverse of `_enter`, of one tensor."""
    out: Tensor = _MoveRows.apply(slots, plan.to_tokens, plan.padding, plan.to_slots, plan.empty_slots)
    return out


def _attend_bucket(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket) -> Tensor:
    """Attention within the samples of a bucket: [slots, heads, D] each in, [slots, H, D] out."""
    q, k, v = (_by_head(x, bucket) for x in (q, k, v))
    outs = []
    for start, end, num_keys, mask in bucket.chunks:
        keys, values = k[:, :, :num_keys], v[:, :, :num_keys]
        is_causal = mask is None
        outs.append(
            F.scaled_dot_product_attention(q[:, :, start:end], keys, values, mask, is_causal=is_causal, enable_gqa=True)
        )
    out = torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]
    return out.transpose(1, 2).flatten(0, 1)


def _by_head(x: Tensor, bucket: Bucket) -> Tensor:
    """Slots [n * length, heads, D] as [n, heads, length, D]."""
    return x.view(bucket.num_samples, bucket.length, *x.shape[1:]).transpose(1, 2)


register_opaque_type(BucketedSdpaPlan, typ="reference")


@torch.library.custom_op("ttt_dist::attend_buckets", mutates_args=())
def _compiled_buckets(q: Tensor, k: Tensor, v: Tensor, plan: BucketedSdpaPlan) -> Tensor:
    return attend_buckets(q, k, v, plan)


@torch.library.custom_op("ttt_dist::attend_buckets_backward", mutates_args=())
def _compiled_buckets_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: BucketedSdpaPlan
) -> tuple[Tensor, Tensor, Tensor]:
    parts = [_bucket_gradients(*part) for part in _enter((grad, q, k, v), plan)]
    grad_q, grad_k, grad_v = (_leave(torch.cat(slots), plan) for slots in zip(*parts, strict=True))
    return grad_q, grad_k, grad_v


@_compiled_buckets.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, plan: BucketedSdpaPlan) -> Tensor:
    return q.new_empty(q.shape)


@_compiled_buckets_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: BucketedSdpaPlan) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.plan = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_compiled_buckets_backward(grad, *ctx.saved_tensors, ctx.plan), None


_compiled_buckets.register_autograd(_gradients, setup_context=_keep)
COMPILED_BUCKETS = torch.ops.ttt_dist.attend_buckets.default


def _bucket_gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bucket: Bucket) -> tuple[Tensor, ...]:
    """Gradients of `_attend_bucket`, from grad [slots, H, D]: by hand, as autograd is off inside of operators."""
    dtype, num_groups = q.dtype, k.shape[1]
    exact = torch.promote_types(dtype, torch.float32)
    # [n, groups, heads of a group or 1, length, D]
    grad, q, k, v = (_by_head(x, bucket).unflatten(1, (num_groups, -1)).to(exact) for x in (grad, q, k, v))
    grads = [torch.zeros_like(x) for x in (q, k, v)]
    scale = q.shape[-1] ** -0.5
    for start, end, num_keys, mask in bucket.chunks:
        queries, keys, values, upstream = (
            q[..., start:end, :],
            k[..., :num_keys, :],
            v[..., :num_keys, :],
            grad[..., start:end, :],
        )
        mask = q.new_full((end, end), float("-inf")).triu(1) if mask is None else mask.unsqueeze(1)
        p = torch.softmax(queries @ keys.mT * scale + mask, dim=-1)
        grad_p = upstream @ values.mT
        grad_scores = p * (grad_p - (p * grad_p).sum(-1, keepdim=True)) * scale
        grads[0][..., start:end, :] = grad_scores @ keys
        grads[1][..., :num_keys, :] += (grad_scores.mT @ queries).sum(2, keepdim=True)
        grads[2][..., :num_keys, :] += (p.mT @ upstream).sum(2, keepdim=True)
    return tuple(x.flatten(1, 2).transpose(1, 2).flatten(0, 1).to(dtype) for x in grads)


class _MoveRows(torch.autograd.Function):
    """y[i] = x[source[i]], rows `holes` zero. `back` and `back_holes` are the inverse move, which is the gradient.

    index_select's own gradient adds rows one by one; here no row is read twice, so a second gather does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, holes: Tensor, back: Tensor, back_holes: Tensor) -> Tensor:
        ctx.save_for_backward(back, back_holes)
        return x.index_select(0, source).index_fill_(0, holes, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, back_holes = ctx.saved_tensors
        return grad.index_select(0, back).index_fill_(0, back_holes, 0), None, None, None, None


def _samples(ids: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """First token and length of each sample in flattened sample ids [B * S]; padding (0) is none."""
    begins = np.append(True, ids[1:] != ids[:-1])
    begins[::seq_len] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(ids)))
    real = ids[starts] != 0
    return starts[real], lengths[real]


def _group(lengths: np.ndarray) -> list[np.ndarray]:
    """Indices of the samples of each bucket: the cheapest cut of the sorted lengths (exact, by dynamic programming)."""
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    below = np.append(0, np.cumsum(counts))  # samples shorter than values[i]
    best, cut = np.zeros(len(values) + 1), np.zeros(len(values) + 1, dtype=int)
    for end in range(1, len(values) + 1):
        length = float(values[end - 1])
        costs = best[:end] + (below[end] - below[:end]) * length * (length + TOKEN_COST) + CALL_COST
        cut[end] = costs.argmin()
        best[end] = costs[cut[end]]
    groups, end = [], len(values)
    while end > 0:
        groups.append(order[below[cut[end]] : below[end]])
        end = cut[end]
    return groups


def _chunks(last: np.ndarray, dtype: torch.dtype, device: torch.device) -> list[QueryChunk]:
    """Slices of the queries of a bucket, from the exclusive end of what each query sees, [n, length]."""
    length = last.shape[1]
    if (last == np.arange(1, length + 1)).all():
        return [QueryChunk(0, length, length, None)]
    chunks = []
    for start in range(0, length, QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, length)
        num_keys = int(last[:, start:end].max())
        hidden = torch.from_numpy(np.arange(num_keys) >= last[:, None, start:end, None]).to(device)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        chunks.append(QueryChunk(start, end, num_keys, mask))
    return chunks
