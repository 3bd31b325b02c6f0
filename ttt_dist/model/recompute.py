"""Activation checkpointing and compilation of a Transformer's blocks, whatever their layers are made of."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ttt_dist.model import products

ATTENTION_OPS = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
} | {torch.ops.higher_order.flex_attention}
ONEDNN = products.ONEDNN and products.ONEDNN.default
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def prepare_blocks(blocks: Iterable[nn.Module], hidden_size: int, checkpointing: str, compiled: bool) -> None:
    """Make each block save less for the backward pass (`none`, `selective`, `full`), and compile it.

    `full` keeps a block's input alone. `selective` also keeps what is dear to compute again: attention, and the products
    that widen (query-key-value, gate and up); norms, rotations, SwiGLU and what narrows to the residual stream are redone.
    """
    for block in blocks:
        if checkpointing == "full":
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        elif checkpointing == "selective":
            contexts = partial(create_selective_checkpoint_contexts, partial(_policy, hidden_size))
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            block.compile(dynamic=False)  # T is the same in every micro-batch


def _policy(hidden_size: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Products of the residual's width are never kept: tensor parallelism sums them in place, and would do so twice.
    if op is ONEDNN:  # (x, weight, bias, ...)
        widens = args[1].shape[0] != hidden_size
    else:
        widens = op in PRODUCTS and isinstance(args[-1], Tensor) and args[-1].shape[-1] != hidden_size
    return CheckpointPolicy.MUST_SAVE if widens or op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE
