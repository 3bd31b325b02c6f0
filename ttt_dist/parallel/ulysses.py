"""Ulysses: each process computes a part of the tokens, and in attention a part of the heads of all tokens.

DeepSpeed's DistributedAttention exchanges the two (arXiv 2309.14509); what it calls in between is our attention with the
plan of all tokens, so the mask is ours.
"""

import torch.distributed as dist
from deepspeed.sequence.layer import DistributedAttention
from torch import Tensor

from ttt_dist.model.attention.plan import AttentionPlan, attend


class UlyssesSplit:
    """A `SequenceSharding` over the processes of `group`. T and the number of query heads must divide by its size."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.exchange = DistributedAttention(_attend_batch, group, scatter_idx=2, gather_idx=1)

    def local_tokens(self, num_tokens: int) -> slice:
        length = num_tokens // self.group.size()
        return slice(self.group.rank() * length, (self.group.rank() + 1) * length)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        if k.shape[1] % self.group.size():  # a key-value head is needed by several processes: one for each query head
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out: Tensor = self.exchange(*(x.unsqueeze(0) for x in (q, k, v)), 0, None, plan)
        return out.squeeze(0)


def _attend_batch(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """`attend` with the axis in front that DistributedAttention asks for: [1, T, heads, D]."""
    return attend(q.squeeze(0), k.squeeze(0), v.squeeze(0), plan).unsqueeze(0)
