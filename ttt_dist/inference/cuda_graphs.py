"""Hidden states of a batch's tokens over the cache of a session: at once on the CPU, by CUDA graphs on a GPU.

A GPU is done with a layer of a few rows sooner than Python has launched it. So a forward of a fixed shape is recorded
once, as a graph of all its kernels, and launched as one. A graph reads and writes the addresses that it was recorded with:
tokens are copied into a buffer of its own, hidden states are found where it left them, and when the store of keys
and values moves all graphs are void. A shape is recorded when it comes for the second time: the first forward runs eagerly,
and warms up what must not happen while recording.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ordered
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt_dist.inference.batch import Batch, Row, exact_batch, fixed_batch, fixed_shape, split_rows
from ttt_dist.model.attention.kv_cache import CachePlan, Run, SlotCache
from ttt_dist.model.transformer import Transformer, head_dim

MOST_TOKENS = {"cpu": 1024, "cuda": 1 << 14}
"""At once. More gain nothing, and on the CPU an output above 32 MiB (at 1,024 tokens, one of 8,192 numbers a token) is new pages of
the system at every product."""


class ForwardRunner:
    """One model with one cache. `is_fixed` gives every forward a fixed shape where it can: by default on CUDA only."""

    def __init__(self, model: Transformer, is_fixed: bool | None = None) -> None:
        config, self.model, self._pool = model.config, model, None
        self.device = next(model.parameters()).device
        self.cache = SlotCache(config.num_layers, config.num_kv_heads, head_dim(config), model.dtype, self.device)
        if self.device.type == "cuda":
            # On sm_90 cuDNN would come first, and plan for 20 to 40 ms whenever a number of keys is new to it. Switched on
            # again after this, it serves; buckets bound what it plans.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self._pool = torch.cuda.graph_pool_handle()
        self.is_fixed = self.device.type == "cuda" if is_fixed is None else is_fixed
        self._recorded: dict[Run, _Recorded | None] = {}

    def __call__(self, rows: Ordered[Row]) -> Tensor:
        """Hidden states [n, H] at the needed tokens, row after row; the cache takes in what has become final."""
        if self.cache.reserve({row.sequence.slot: row.end for row in rows}):
            self._recorded.clear()
        shape = fixed_shape(rows, self.cache.length) if self.is_fixed else None
        if shape is None:
            hidden = self._in_parts(rows)
        else:
            batch = fixed_batch(rows, shape, self.cache.spare_slot)
            hidden = self._replay(shape, batch)[self.tensor(batch.needed)]
        for row in rows:
            row.sequence.length = row.num_cacheable
        return hidden

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array on the model's device."""
        return torch.from_numpy(values).to(self.device)

    def _in_parts(self, rows: Ordered[Row]) -> Tensor:
        """Hidden states at the needed tokens, row after row; computed in the order of slots."""
        order = np.argsort([row.sequence.slot for row in rows])
        ordered = [rows[index] for index in order]
        batches = [exact_batch(part) for part in split_rows(ordered, MOST_TOKENS[self.device.type])]
        hidden = [self._forward(self.tensor(batch.table), batch.runs, self.tensor(batch.needed)) for batch in batches]
        ends = np.cumsum([len(row.needed) for row in ordered])
        places = np.split(np.arange(ends[-1]), ends[:-1])
        return torch.cat(hidden)[self.tensor(np.concatenate([places[rank] for rank in np.argsort(order)]))]

    def _forward(self, table: Tensor, runs: tuple[Run, ...], needed: Tensor | None = None) -> Tensor:
        ids, positions, places, slots, *sees = table
        return self.model.hidden(ids, positions, CachePlan(self.cache, slots, places, sees, runs), needed)

    def _replay(self, shape: Run, batch: Batch) -> Tensor:
        table = self.tensor(batch.table)
        if shape not in self._recorded:
            self._recorded[shape] = None
            return self._forward(table, batch.runs)
        recorded = self._recorded[shape]
        if recorded is None:
            recorded = _Recorded(table, lambda static: self._forward(static, batch.runs), self._pool)
            self._recorded[shape] = recorded
        return recorded(table)


class _Recorded:
    """A forward over a buffer of tokens: on CUDA a graph, elsewhere the calls themselves."""

    def __init__(self, table: Tensor, forward: Callable[[Tensor], Tensor], pool: Any) -> None:
        self.table, self.forward = table.clone(), forward
        self.graph = torch.cuda.CUDAGraph() if table.is_cuda else None
        if self.graph is not None:
            with torch.cuda.graph(
                self.graph, pool=pool, capture_error_mode="thread_local"
            ):  # a server has other threads
                self.hidden = forward(self.table)

    def __call__(self, table: Tensor) -> Tensor:
        """Hidden states [T, H], which last until the next call."""
        self.table.copy_(table)
        if self.graph is None:
            return self.forward(self.table)
        self.graph.replay()
        return self.hidden
