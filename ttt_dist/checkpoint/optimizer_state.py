"""Where DeepSpeed keeps the numbers of each weight in this process, and filling them from a checkpoint of another layout.

All of its optimizers update fp32 tensors (masters) with the moments of Adam beside them: a weight's own at ZeRO 0, and flat
ones in which several weights, or runs of them, lie end to end. Weights of the forward pass are made from these.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from ttt_dist.checkpoint.saved_state import MOMENTS, WEIGHTS, SavedState
from ttt_dist.config.model import ModelConfig
from ttt_dist.parallel.gather import own_parameters
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS, padded_rows, partition_of, shard


class ParamFragment(NamedTuple):
    """`size` numbers of this process's slice of a weight, from number `first` on, are those of `master` from `offset` on."""

    master: Tensor
    offset: int
    first: int
    size: int


@torch.no_grad()
def load_optimizer_state(
    source: SavedState, engine: deepspeed.DeepSpeedEngine, mesh: Mesh, config: ModelConfig
) -> None:
    """Set masters and moments of a fresh engine, this process's share of `source`. Raises UserError."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)  # inside DeepSpeed's own, where there is one
    for master in _masters(engine):
        assert master.dtype == torch.float32
        step = torch.tensor(float(source.adam_step), device=master.device)
        adam.state[master] = {"step": step, **{kind: torch.zeros_like(master) for kind in MOMENTS}}
    for name, home in _fragments(engine, mesh, config):
        moments = adam.state[home.master]
        for kind, target in ((WEIGHTS, home.master), *((kind, moments[kind]) for kind in MOMENTS)):
            own = _own_slice(name, source.read(name, kind), mesh).flatten()
            target.view(-1).narrow(0, home.offset, home.size).copy_(own.narrow(0, home.first, home.size))


@torch.no_grad()
def refresh_model_weights(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make the weights of the forward pass anew from the masters; collective."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()  # forget what is gathered
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()  # gather what stays gathered
    elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer.update_lp_params()
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for rounded, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for weight, master in zip(rounded, masters, strict=True):
                weight.copy_(master)


def _masters(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(optimizer.fp32_partitioned_groups_flat)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return list(optimizer.single_partition_of_fp32_groups)
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.fp32_groups_flat_partition)
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        return [master for group in optimizer.fp32_groups for master in group]
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _fragments(
    engine: deepspeed.DeepSpeedEngine, mesh: Mesh, config: ModelConfig
) -> Iterator[tuple[str, ParamFragment]]:
    """Names and homes of the weights that this process keeps numbers of."""
    optimizer, masters = engine.optimizer, _masters(engine)
    own_master: dict[nn.Parameter, Tensor] = {}
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        rounded = (parameter for group in optimizer.fp16_groups for parameter in group)
        own_master = dict(zip(rounded, masters, strict=True))
    for name, parameter in own_parameters(engine, mesh, config).items():
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            home = _partitioned(optimizer, parameter)
        elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
            home = _flattened(parameter, masters)
        else:
            home = ParamFragment(own_master.get(parameter, parameter), 0, 0, parameter.numel())
        if home.size:
            yield name, home


# Of parameters DeepSpeed makes what no type says: it hangs its own attributes on them.


def _partitioned(optimizer: DeepSpeedZeroOptimizer_Stage3, parameter: Any) -> ParamFragment:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    first = size * optimizer._get_param_partition_rank(parameter)
    size = max(min(size, parameter.ds_numel - first), 0)  # the last parts may be padding
    return ParamFragment(optimizer.fp32_partitioned_groups_flat[group], offset, first, size)


def _flattened(parameter: Any, masters: list[Tensor]) -> ParamFragment:
    mapping = parameter._hp_mapping
    if mapping is None:  # another process keeps it
        return ParamFragment(masters[0], 0, 0, 0)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return ParamFragment(masters[mapping.param_group_index], here.start, there.start, there.numel)


def _own_slice(name: str, whole: Tensor, mesh: Mesh) -> Tensor:
    """What tensor parallelism leaves this process of a weight, the vocabulary padded with zeros."""
    if name in VOCABULARY_WEIGHTS:
        whole = F.pad(whole, (0, 0, 0, padded_rows(len(whole), mesh.tensor) - len(whole)))
    return shard(whole, partition_of(name), mesh.tensor_rank, mesh.tensor)
