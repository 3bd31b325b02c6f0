"""Tensor parallelism: Megatron-Core's layers behind the layer factory, with or without its sequence parallelism.

Every process holds a slice of each matrix and all of each vector. With sequence parallelism the hidden states between
the matrices are split over the tokens too. Where a whole vector is applied to a split tensor, each process has a part of
its gradient only; the sum is made in the backward pass itself (`_SplitNorm`), so that no ZeRO stage needs to know.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    all_gather_last_dim_from_tensor_parallel_region,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from ttt_dist.model.cross_entropy import VocabularySlice
from ttt_dist.model.layers import LocalLayerFactory, RMSNorm, SequenceSharding, WeightSource, rms_norm
from ttt_dist.model.lora import Adapter
from ttt_dist.model.loss import LossRows, LossSums, linear_cross_entropy
from ttt_dist.model.products import linear
from ttt_dist.parallel.deepspeed_adapter import mark_split
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS, padded_rows, partition_of, shard


class TensorParallelFactory(LocalLayerFactory):
    """This process's slices of the layers. Needs Megatron's process groups (`ttt_dist.parallel.groups`)."""

    def __init__(
        self,
        weights: WeightSource | None = None,
        sequence_sharding: SequenceSharding | None = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__(weights, sequence_sharding)
        self.size = parallel_state.get_tensor_model_parallel_world_size()
        self.rank = parallel_state.get_tensor_model_parallel_rank()
        self.sequence_parallel = sequence_parallel
        self.config = ModelParallelConfig(
            tensor_model_parallel_size=self.size,
            sequence_parallel=sequence_parallel,
            use_cpu_initialization=True,
            perform_initialization=False,
        )

    def embedding(self, name: str, num_rows: int, hidden_size: int, std: float) -> nn.Module:
        return _Embedding(self._slice(f"{name}.weight", (num_rows, hidden_size), std), self.config)

    def column_linear(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float, num_blocks: int = 1
    ) -> nn.Module:
        return _ColumnLinear(*self._column_slices(name, num_in, num_out, bias, std), self.config)

    def qkv_linear(
        self, name: str, num_in: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool, std: float
    ) -> nn.Module:
        slices = self._column_slices(name, num_in, (num_heads + 2 * num_kv_heads) * head_dim, bias, std)
        if num_kv_heads % self.size == 0:
            return _ColumnLinear(*slices, self.config)
        return _SharedGroups(*slices, self.config, num_kv_heads, head_dim)

    def row_linear(self, name: str, num_in: int, num_out: int, std: float) -> nn.Module:
        return _RowLinear(self._slice(f"{name}.weight", (num_out, num_in), std), self.config)

    def _adapter(self, lora_a: Tensor, lora_b: Tensor, splits_inputs: bool) -> Adapter:
        if splits_inputs:
            return _RowAdapter(mark_split(nn.Parameter(lora_a)), nn.Parameter(lora_b), self.sequence_parallel)
        return _ColumnAdapter(nn.Parameter(lora_a), mark_split(nn.Parameter(lora_b)), self.sequence_parallel)

    def norm(self, name: str, size: int, eps: float, of_heads: bool = False) -> nn.Module:
        weight = self._weight(f"{name}.weight", (size,), mean=1.0)
        return _SplitNorm(weight, eps) if of_heads or self.sequence_parallel else RMSNorm(weight, eps)

    def head(
        self, name: str, num_rows: int, hidden_size: int, num_tokens: int, std: float, tied_to: nn.Module | None
    ) -> nn.Module:
        if tied_to is None:
            weight = mark_split(nn.Parameter(self._slice(f"{name}.weight", (num_rows, hidden_size), std)))
        else:
            assert isinstance(tied_to.weight, nn.Parameter)
            weight = tied_to.weight
        return _Head(weight, num_tokens, self.sequence_parallel)

    def _column_slices(
        self, name: str, num_in: int, num_out: int, bias: bool, std: float
    ) -> tuple[Tensor, Tensor | None]:
        weight = self._slice(f"{name}.weight", (num_out, num_in), std)
        return weight, self._slice(f"{name}.bias", (num_out,)) if bias else None

    def _slice(self, name: str, shape: tuple[int, ...], std: float = 0.0) -> Tensor:
        """This process's slice of a weight of `shape`."""
        whole, partition = self.weights(name, shape, std), partition_of(name)
        if name in VOCABULARY_WEIGHTS:
            whole = F.pad(whole, (0, 0, 0, padded_rows(len(whole), self.size) - len(whole)))
        return shard(whole, partition, self.rank, self.size).to(self.dtype)


def _give(layer: nn.Module, **tensors: Tensor | None) -> None:
    """Set a new layer's parameters. Inside its constructor: after it, zero.Init takes them apart."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                mark_split(layer.get_parameter(name)).copy_(tensor)


class _Embedding(VocabParallelEmbedding):
    def __init__(self, weight: Tensor, config: ModelParallelConfig) -> None:
        num_rows = len(weight) * config.tensor_model_parallel_size
        super().__init__(
            num_rows,
            weight.shape[1],
            init_method=None,
            reduce_scatter_embeddings=config.sequence_parallel,
            config=config,
        )
        _give(self, weight=weight)

    def forward(self, ids: Tensor) -> Tensor:
        if self.reduce_scatter_embeddings:  # Megatron splits the first axis of [T, 1, H]
            return super().forward(ids.unsqueeze(0)).squeeze(1)
        return super().forward(ids)


class _ColumnLinear(ColumnParallelLinear):
    def __init__(self, weight: Tensor, bias: Tensor | None, config: ModelParallelConfig) -> None:
        num_out = len(weight) * config.tensor_model_parallel_size
        super().__init__(weight.shape[1], num_out, config=config, init_method=None, bias=bias is not None)
        _give(self, weight=weight, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _SharedGroups(_ColumnLinear):
    """Query, key and value where there are fewer key-value groups than processes: several share one.

    The rows are split evenly, whatever they are, and the outputs gathered: no weight is held twice.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, config: ModelParallelConfig, num_groups: int, head_dim: int
    ) -> None:
        super().__init__(weight, bias, config)
        self.num_groups, self.head_dim = num_groups, head_dim

    def forward(self, x: Tensor) -> Tensor:
        whole = all_gather_last_dim_from_tensor_parallel_region(super().forward(x))
        sharing = self.tp_group.size() // self.num_groups
        rank = self.tp_group.rank()
        group = whole.unflatten(-1, (self.num_groups, -1, self.head_dim))[:, rank // sharing]
        queries, keys_values = group.split([group.shape[1] - 2, 2], dim=1)
        return torch.cat([queries.chunk(sharing, dim=1)[rank % sharing], keys_values], dim=1).flatten(1)


class _RowLinear(RowParallelLinear):
    def __init__(self, weight: Tensor, config: ModelParallelConfig) -> None:
        num_in = weight.shape[1] * config.tensor_model_parallel_size
        super().__init__(
            num_in,
            len(weight),
            config=config,
            init_method=None,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        _give(self, weight=weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _ColumnAdapter(Adapter):
    """That of a map whose outputs are split: A is whole, B a slice. With sequence parallelism A is applied to this process's
    tokens and has a part of its gradient only, see `_SplitNorm`."""

    def __init__(self, lora_a: nn.Parameter, lora_b: nn.Parameter, sequence_parallel: bool) -> None:
        super().__init__(lora_a, lora_b)
        self.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence_parallel:
            low = linear(x, copy_to_tensor_model_parallel_region(self.lora_A))
            return linear(gather_from_sequence_parallel_region(low), self.lora_B)
        return linear(copy_to_tensor_model_parallel_region(linear(x, self.lora_A)), self.lora_B)


class _RowAdapter(Adapter):
    """That of a map whose inputs are split: A is a slice, B whole, and what lies between them is summed."""

    def __init__(self, lora_a: nn.Parameter, lora_b: nn.Parameter, sequence_parallel: bool) -> None:
        super().__init__(lora_a, lora_b)
        self.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        low = linear(x, self.lora_A)
        if self.sequence_parallel:
            low = reduce_scatter_to_sequence_parallel_region(low)
            return linear(low, copy_to_tensor_model_parallel_region(self.lora_B))
        # A copy: it is summed in place, and selective checkpointing may keep `low` itself to compute with it again.
        return linear(reduce_from_tensor_model_parallel_region(low.clone()), self.lora_B)


class _SplitNorm(RMSNorm):
    """RMSNorm of this process's tokens or heads: the gradient of its weight is summed over the processes."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, copy_to_tensor_model_parallel_region(self.weight), self.eps)


class _Head(nn.Module):
    """The loss over this process's slice of the vocabulary, see `ttt_dist.model.layers.Head`."""

    def __init__(self, weight: nn.Parameter, num_tokens: int, sequence_parallel: bool) -> None:
        super().__init__()
        self.weight, self.num_tokens, self.sequence_parallel = weight, num_tokens, sequence_parallel

    def forward(self, hidden: Tensor, rows: LossRows) -> LossSums:
        gather = (
            gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
        )
        hidden = gather(hidden).index_select(0, rows.rows)
        group = parallel_state.get_tensor_model_parallel_group()
        vocabulary = VocabularySlice(
            first=group.rank() * len(self.weight),
            num_tokens=self.num_tokens,
            reduce_max=lambda tensor: dist.all_reduce(tensor, dist.ReduceOp.MAX, group),
            reduce_sum=lambda tensor: dist.all_reduce(tensor, dist.ReduceOp.SUM, group),
        )
        return linear_cross_entropy(hidden, self.weight, rows, vocabulary)
