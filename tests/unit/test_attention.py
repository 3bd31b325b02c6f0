"""Attention by buckets of samples against attention under the dense mask, values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.structures import packs, tiny_layout
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention import padded
from ttt_dist.model.attention.plan import attend, attention_plan
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.visibility import dense_mask

LAYOUT = tiny_layout()
OBJECTIVES = [Objective(), Objective(prompt_audio="causal"), Objective(kind="ar"), Objective(kind="nar")]


def dense(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """Softmax over all keys of the row under the mask; padding gets zeros."""
    repeat = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeat, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    mask = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)[:, None]
    weights = torch.where(mask, scores, -1e30).softmax(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    return torch.where(batch.sample_ids[..., None, None] != 0, out, 0.0)


def heads_of(
    batch: Batch, num_heads: int, num_kv_heads: int, dtype: torch.dtype, width: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values [B, S, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*batch.input_ids.shape, heads, width) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    q, k, v = (torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
    return q, k, v


def check(batch: Batch, num_heads: int, num_kv_heads: int) -> None:
    q, k, v = (x.requires_grad_() for x in heads_of(batch, num_heads, num_kv_heads, torch.float64))
    plan = attention_plan(batch.sample_ids, batch.span_ids, torch.float64)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    ours, theirs = attend(*flat, plan).view_as(q), dense(q, k, v, batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    wanted = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, reference in zip(*(torch.autograd.grad(out, (q, k, v), wanted) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(packs(LAYOUT), st.sampled_from(OBJECTIVES), st.integers(0, 9), st.sampled_from([(2, 2), (4, 2), (3, 1)]))
def test_buckets_equal_the_dense_mask(rows: list, objective: Objective, padding: int, heads: tuple[int, int]) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + padding
    check(collate(rows, LAYOUT, objective, 0, [0] * len(rows), seq_len), *heads)


@settings(max_examples=20)
@given(packs(LAYOUT), st.sampled_from(OBJECTIVES))
def test_long_samples_in_slices_of_queries(rows: list, objective: Objective) -> None:
    """With a slice shorter than most samples, as a long sample meets the real one."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padded, "QUERY_CHUNK", 5)
        check(collate(rows, LAYOUT, objective, 0, [0] * len(rows), seq_len), 2, 1)


def test_slices_skip_the_keys_that_nobody_sees() -> None:
    """A long sample's masks stay near half of its square."""
    length = 4 * padded.QUERY_CHUNK
    span_ids = torch.zeros(1, length, dtype=torch.long)
    span_ids[:, 10:20] = 1
    plan = attention_plan(torch.ones_like(span_ids), span_ids)
    (bucket,) = plan.buckets
    elements = sum(chunk.mask.numel() for chunk in bucket.chunks if chunk.mask is not None)
    assert elements == length**2 * 5 // 8


def test_causal_samples_need_no_mask_and_rows_end_samples() -> None:
    """Two full rows whose samples bear the same number are two samples."""
    ids = torch.ones(2, 9, dtype=torch.long)
    plan = attention_plan(ids, torch.zeros_like(ids))
    (bucket,) = plan.buckets
    assert (bucket.num_samples, bucket.length) == (2, 9)
    assert [chunk.mask for chunk in bucket.chunks] == [None]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
@settings(max_examples=40)
def test_grouping_takes_each_sample_once_and_costs_no_more_than_the_plain_ways(lengths: list[int]) -> None:
    array = np.array(lengths)
    groups = padded._group(array)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))

    def cost(groups: list[np.ndarray]) -> int:
        longest = [(len(group), int(array[group].max())) for group in groups]
        return sum(n * length * (length + padded.TOKEN_COST) + padded.CALL_COST for n, length in longest)

    one = [np.arange(len(lengths))]
    each = [np.flatnonzero(array == length) for length in np.unique(array)]
    assert cost(groups) <= min(cost(one), cost(each))


def test_kernel_without_a_square_in_fp32_is_chosen() -> None:
    """The CPU flash kernel takes a grouped, masked call; the fallback would build [n, H, L, L]."""
    q, k = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8)
    mask = torch.zeros(2, 1, 16, 16)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        F.scaled_dot_product_attention(q, k, k, mask, enable_gqa=True)
