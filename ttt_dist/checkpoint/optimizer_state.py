"""Filling a fresh engine's masters and Adam's moments from a checkpoint of another layout.

`ttt_dist.parallel.deepspeed_adapter` says where the numbers of a weight are in each of DeepSpeed's optimizers.
"""

import deepspeed
import torch
from torch import Tensor

from ttt_dist.checkpoint.saved_state import EMA, WEIGHTS, SavedState
from ttt_dist.config.model import ModelConfig
from ttt_dist.parallel.deepspeed_adapter import RUN, fragments, inner_adam, masters
from ttt_dist.parallel.gather import own_parameters
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import partition_of, rows_of_rank, shard_shape
from ttt_dist.util.memory import return_free_memory


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
        learnt, state = name in source.learns, adam.state.get(part.master, {})  # none of what is frozen here
        # What was frozen there has no moments, and is its own average.
        found = {kind: kind if learnt else WEIGHTS for kind in kinds if kind in state and (learnt or kind == EMA)}
        for kind, target in ((WEIGHTS, part.master), *((kind, state[kind]) for kind in found)):
            whole = target.view(-1).narrow(0, part.offset, part.size)
            for number, run in enumerate(whole.split(RUN)):
                # Without a name for what is read: it would stay until the next has been read too.
                run.copy_(read_run(source, name, found.get(kind, WEIGHTS), mesh, part.first + RUN * number, len(run)))
        return_free_memory()


def read_run(source: SavedState, name: str, kind: str, mesh: Mesh, first: int, size: int) -> Tensor:
    """`size` numbers from `first` on of what tensor parallelism leaves this process of a weight, whose rows alone are read.

    With ZeRO each of a thousand processes keeps a thousandth of each weight. The vocabulary is padded with zeros.
    """
    shape = shard_shape(name, source.shapes[name], mesh.tensor)
    width = torch.Size(shape[1:]).numel()
    start, stop = first // width, -(-(first + size) // width)
    partition = partition_of(name) if mesh.tensor > 1 else None
    if partition is None:
        rows = source.read_rows(name, kind, start, stop)
    elif partition.axis == 1:
        rows = source.read_rows(name, kind, start, stop).chunk(mesh.tensor, 1)[mesh.tensor_rank]
    else:
        runs = rows_of_rank(mesh.tensor * shape[0], partition, mesh.tensor_rank, mesh.tensor)
        rows = _joined([_overlap(source, name, kind, run, start, stop) for run in runs])
    return rows.flatten().narrow(0, first - start * width, size)


def _overlap(source: SavedState, name: str, kind: str, run: tuple[int, int, int], start: int, stop: int) -> Tensor:
    """Of rows [start, stop) of a slice those of one of its runs; zeros for rows that the weight has not."""
    of_whole, of_slice, count = run
    start, stop = max(start, of_slice), min(stop, of_slice + count)
    (num_rows, *width), moved = source.shapes[name], of_whole - of_slice
    there = min(stop + moved, num_rows)
    rows = [source.read_rows(name, kind, start + moved, there)] if start + moved < there else []
    return _joined([*rows, torch.zeros(max(stop - start, 0) - sum(map(len, rows)), *width)])


def _joined(parts: list[Tensor]) -> Tensor:
    """End to end; what is whole already, and may be mapped from a file, is not copied."""
    some = [part for part in parts if len(part)]
    return some[0] if len(some) == 1 else torch.cat(parts)
