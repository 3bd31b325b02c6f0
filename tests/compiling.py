"""The compiler's graphs, as they are after autograd was split into forward and backward, run without making code of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.nn.attention import flex_attention

from ttt_dist.parallel.compile import COMPILER


@dataclass
class Graphs:
    """Every graph that was compiled."""

    forward: list[torch.fx.GraphModule] = field(default_factory=list)
    backward: list[torch.fx.GraphModule] = field(default_factory=list)
    num_calls: Counter[str] = field(default_factory=Counter)
    """How often graphs of each kind ran."""

    def backend(self) -> Callable[..., Any]:
        """Inductor's choice of what is kept and what is computed again, then each graph as it stands."""
        backend: Callable[..., Any] = aot_autograd(
            fw_compiler=partial(self._keep, "forward"),
            bw_compiler=partial(self._keep, "backward"),
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
        )
        return backend

    def _keep(self, kind: str, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        getattr(self, kind).append(graph)

        def run(*arguments: Any) -> Any:
            self.num_calls[kind] += 1
            return graph.forward(*arguments)

        boxed: Callable[..., Any] = make_boxed_func(run)
        return boxed


def count(graph: torch.fx.GraphModule, *names: str) -> int:
    """Calls of operators whose name is one of these."""
    targets = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return sum(target.removesuffix(".default").rpartition(".")[2] in names for target in targets)


def watch_compiler(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Graphs of compiled blocks from here on. FlexAttention goes through on CPU too, as plain sums over all pairs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = Graphs()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: graphs.backend())
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *heads: None)
    monkeypatch.setattr(COMPILER, "num_graphs", 0)
    return graphs
