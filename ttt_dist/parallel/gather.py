"""A model that is split over processes, put together on rank 0 one weight at a time."""

from collections.abc import Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import partition_of, shard_shape, unshard
from ttt_dist.parallel.stages import layer_and_key
from ttt_dist.sequence.tokens import TokenLayout


def full_state_dict(
    engine: deepspeed.DeepSpeedEngine, mesh: Mesh, config: ModelConfig, layout: TokenLayout
) -> Iterator[tuple[str, Tensor]]:
    """Names and whole weights on the CPU, on rank 0 alone; collective: all ranks must iterate to the end."""
    own = own_parameters(engine.module, mesh, config)
    for name, shape in parameter_shapes(config, layout.padded_vocab_size).items():
        partition = partition_of(name)
        stage = engine.module.stage_owner(layer_and_key(name, config.num_layers)[0]) if mesh.pipeline > 1 else 0
        sources = [mesh.rank_at(rank, stage) for rank in range(mesh.tensor if partition else 1)]
        with GatheredParameters([own[name]] if name in own else [], enabled=name in own):
            if mesh.rank in sources and mesh.rank != 0:
                dist.send(own[name].detach().contiguous(), 0)
            if mesh.rank == 0:
                slice_ = shard_shape(name, shape, mesh.tensor)
                pieces = [_receive(source, own.get(name), slice_, engine) for source in sources]
                yield name, unshard(pieces, partition)[: shape[0]]


def own_parameters(model: nn.Module, mesh: Mesh, config: ModelConfig) -> dict[str, nn.Parameter]:
    """This process's parameters by the Transformer's names."""
    if mesh.pipeline == 1:
        return dict(model.named_parameters())
    from ttt_dist.parallel import pipeline

    return pipeline.own_parameters(model, config.num_layers)


def _receive(
    source: int, own: nn.Parameter | None, shape: tuple[int, ...], engine: deepspeed.DeepSpeedEngine
) -> Tensor:
    """Rank 0's own slice, or that of another rank, on the CPU."""
    if source == 0:
        assert own is not None
        return own.detach().to("cpu", copy=True)
    dtype = next(engine.module.parameters()).dtype
    buffer = torch.empty(shape, dtype=dtype, device=engine.device)
    dist.recv(buffer, source)
    return buffer.cpu()
