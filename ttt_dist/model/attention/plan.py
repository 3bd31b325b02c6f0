"""Attention over packed samples without ever looking across samples: one plan per batch, and ways to carry it out.

A plan is built once per forward from the ids of a batch, and serves every layer. On CUDA it is a block mask for
FlexAttention, elsewhere buckets of samples for SDPA (FlexAttention has no backward on CPU). Decoding makes plans of its
own, over cached keys and values.
"""

import torch
from torch import Tensor

from ttt_dist.model.attention.flex import FlexPlan, attend_flex
from ttt_dist.model.attention.kv_cache import CachePlan
from ttt_dist.model.attention.padded import BucketedSdpaPlan, attend_buckets

AttentionPlan = BucketedSdpaPlan | FlexPlan | CachePlan


def attention_plan(sample_ids: Tensor, span_ids: Tensor, dtype: torch.dtype = torch.float32) -> AttentionPlan:
    """The plan of a batch, from ids [B, S], for queries of type `dtype`. Samples must be contiguous in their row.

    Inference mode means evaluation, where every batch has a shape of its own: FlexAttention would compile anew for each,
    buckets take any shape as it comes.
    """
    if sample_ids.is_cuda and not torch.is_inference_mode_enabled():
        return FlexPlan.build(sample_ids, span_ids)
    return BucketedSdpaPlan.build(sample_ids, span_ids, dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """Attention of q [T, H, D] over k, v [T, G, D] (H a multiple of G), [T, H, D]; padding gets zeros."""
    if isinstance(plan, CachePlan):
        return plan.attend(q, k, v)
    if isinstance(plan, FlexPlan):
        return attend_flex(q, k, v, plan)
    return attend_buckets(q, k, v, plan)
