"""Compilation of a Transformer's blocks, and a count of what was compiled."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Compiler:
    """torch's own compiler, which counts the blocks' graphs.

    A block whose frame it does not take runs uncompiled without a word, and `fullgraph` is no help; and there are other
    graphs than those of blocks (FlexAttention is one by itself).
    """

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo import lookup_backend  # takes a second to import

        self.num_graphs += 1
        compiled: Callable[..., Any] = lookup_backend("inductor")(graph, inputs)
        return compiled


COMPILER = Compiler()


def apply_compile(blocks: Iterable[nn.Module]) -> None:
    """Compile each block: one graph for all of them, and an error where there would be several.

    After activation checkpointing: a block is compiled as it is then, with what it computes again as a part of the graph.
    T is the same in every micro-batch.
    """
    for block in blocks:
        block.compile(backend=COMPILER, dynamic=False, fullgraph=True)
