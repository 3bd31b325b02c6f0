"""Activation checkpointing of a Transformer's blocks, whatever their layers are made of."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ttt_dist.model.attention.padded import COMPILED_BUCKETS
from ttt_dist.model.products import ONEDNN

ATTENTION_OPS = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
} | {torch.ops.higher_order.flex_attention, COMPILED_BUCKETS}
# Products: which of their arguments is the weight, and which of its axes are the outputs.
PRODUCTS = {
    torch.ops.aten.mm.default: (1, -1),
    torch.ops.aten.addmm.default: (2, -1),
    torch.ops.aten._scaled_mm.default: (1, -1),
}
if ONEDNN is not None:
    PRODUCTS[ONEDNN] = (1, 0)


def apply_activation_checkpointing(
    blocks: Iterable[nn.Module], hidden_size: int, checkpointing: str, compiled: bool
) -> None:
    """Make each block save less for the backward pass: `none`, `selective`, `full`; `compiled`: it will be compiled after.

    `full` keeps a block's input alone. `selective` also keeps what is dear to compute again: attention, and the products
    that widen (query-key-value, gate and up); norms, rotations, SwiGLU and what narrows to the residual stream are redone.
    """
    if checkpointing == "none":
        return
    for block in blocks:
        block.forward = _checkpointed(block.forward, checkpointing, hidden_size, compiled)


def _checkpointed(
    forward: Callable[..., Any], checkpointing: str, hidden_size: int, compiled: bool
) -> Callable[..., Any]:
    # A function with a frame of its own: the compiler takes checkpoint(...) into the graph where it meets the call, but
    # runs a partial of it, whose frame would be torch's own, uncompiled and without a word.
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing == "selective" or compiled:
        # Compiled, `full` asks for a policy as well: without one the results inside an autograd.Function (fp8) are kept.
        policy = partial(_policy, hidden_size) if checkpointing == "selective" else _keep_nothing
        options["context_fn"] = partial(create_selective_checkpoint_contexts, policy)

    def run(*arguments: Any) -> Any:
        return checkpoint(forward, *arguments, **options)

    return run


def _keep_nothing(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


def _policy(hidden_size: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Called for every operation of a block's forward pass, and again when it is run a second time.
    # Products of the residual's width are never kept: tensor parallelism sums them in place, and would do so twice. Nor are those
    # of something narrower, which adapters add: they cost nothing to make again.
    widens = False
    if op in PRODUCTS:
        weight, outputs = PRODUCTS[op]
        widens = args[weight].shape[outputs] != hidden_size == args[weight - 1].shape[-1]
    return CheckpointPolicy.MUST_SAVE if widens or op in ATTENTION_OPS else CheckpointPolicy.PREFER_RECOMPUTE
