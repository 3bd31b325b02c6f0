"""Filling a fresh engine's masters and Adam's moments from a checkpoint of another layout.

`ttt_dist.parallel.deepspeed_adapter` says where the numbers of a weight are in each of DeepSpeed's optimizers.
"""

import deepspeed
import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_dist.checkpoint.saved_state import WEIGHTS, SavedState
from ttt_dist.config.model import ModelConfig
from ttt_dist.parallel.deepspeed_adapter import fragments, inner_adam, masters
from ttt_dist.parallel.gather import own_parameters
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS, padded_rows, partition_of, shard


@torch.no_grad()
def load_optimizer_state(
    source: SavedState, engine: deepspeed.DeepSpeedEngine, mesh: Mesh, config: ModelConfig
) -> None:
    """Set masters and moments of a fresh engine, this process's share of `source`. Raises UserError."""
    adam, kinds = inner_adam(engine), [kind for kind in source.kinds if kind != WEIGHTS]
    for master in masters(engine):
        assert master.dtype == torch.float32
        step = torch.tensor(float(source.adam_step), device=master.device)
        adam.state[master] = {"step": step, **{kind: torch.zeros_like(master) for kind in kinds}}
    for name, part in fragments(engine, own_parameters(engine.module, mesh, config)):
        moments = adam.state[part.master]
        for kind, target in ((WEIGHTS, part.master), *((kind, moments[kind]) for kind in kinds)):
            own = _own_slice(name, source.read(name, kind), mesh).flatten()
            target.view(-1).narrow(0, part.offset, part.size).copy_(own.narrow(0, part.first, part.size))


def _own_slice(name: str, whole: Tensor, mesh: Mesh) -> Tensor:
    """What tensor parallelism leaves this process of a weight, the vocabulary padded with zeros."""
    if name in VOCABULARY_WEIGHTS:
        whole = F.pad(whole, (0, 0, 0, padded_rows(len(whole), mesh.tensor) - len(whole)))
    return shard(whole, partition_of(name), mesh.tensor_rank, mesh.tensor)
