"""What DeepSpeed wrote of a run of ours, weight by weight, without process groups, engine or accelerator.

Every process saved what it holds: a slice of the stage's weights (tensor parallelism), of which ZeRO has one run of numbers
or another. Files are mapped, and one weight at a time is put together: memory does not grow with the checkpoint.

    mp_rank_MM_model_states.pt                     no ZeRO: weights, masters, moments; MM = stage x tensor size + tensor rank
    zero_pp_rank_0_mp_rank_MM_model_states.pt      ZeRO 3: names and shapes of the weights
    [bf16_]zero_pp_rank_D_mp_rank_MM_optim_states.pt   ZeRO: what process D of those that share a slice has of masters and moments
    layer_LL-model_TT-model_states.pt              pipeline: weights of layer LL, tensor rank TT

So a weight is found by three steps: which stage (`stage_of`), which of its tensor-parallel slices (`_part`), and where in
the files of the processes that share that slice (`Unsharded`, `Flattened`, `Partitioned`: one for each way of DeepSpeed's).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ttt_dist.checkpoint.saved_state import EMA, WEIGHTS, SavedState
from ttt_dist.checkpoint.torch_io import read_state
from ttt_dist.model.optimizer_groups import optimizer_groups
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import Partition, partition_of, shard_shape
from ttt_dist.parallel.stages import layer_and_key, layer_sizes, pipeline_name, stage_bounds
from ttt_dist.util.errors import UserError

# What a file that is not laid out as DeepSpeed does it makes its readers raise.
NOT_DEEPSPEED = (LookupError, TypeError, AttributeError, RuntimeError)


class DeepSpeedCheckpoint(SavedState):
    """A folder RUN/checkpoints/step-N of DeepSpeed's files. Raises UserError naming what is missing or not as it should be."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.mesh = Mesh.of(self.config.parallel, self.metadata["world_size"], 0)
        self._parts: dict[tuple[int, int], Part] = {}

    @property
    def adam_step(self) -> int:
        return self._part(0, 0).adam_step

    def read(self, name: str, kind: str) -> Tensor:
        shape, partition, size = self.shapes[name], partition_of(name), self.mesh.tensor
        if partition is None or size == 1:
            return self._slice(name, kind, 0)
        local = list(shard_shape(name, shape, size))
        local[partition.axis] *= size
        whole = torch.empty(local)
        for rank in range(size):
            _fill(whole, self._slice(name, kind, rank), partition, rank, size)
        return whole[: shape[0]]

    def _slice(self, name: str, kind: str, tensor_rank: int) -> Tensor:
        """What one tensor-parallel rank had of a weight."""
        shape = torch.Size(shard_shape(name, self.shapes[name], self.mesh.tensor))
        part = self._part(self.stage_of(name), tensor_rank)
        if part.adam_step == 0:  # nothing has been averaged, and moments are zero
            if kind not in (WEIGHTS, EMA):
                return torch.zeros(shape)
            kind = WEIGHTS
        with self._as_deepspeed_writes():
            pieces = [piece.detach().flatten() for piece in part.pieces(name, kind)]
            flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        # ZeRO-3 makes its pieces equal: the last ones may be padded by less than one number a piece.
        if not shape.numel() <= flat.numel() < shape.numel() + len(pieces):
            raise UserError(f"{self.folder}: {kind} of {name} are {flat.numel()} numbers instead of {shape.numel()}")
        return flat[: shape.numel()].view(shape)

    def _part(self, stage: int, tensor_rank: int) -> "Part":
        key = (stage, tensor_rank)
        if key not in self._parts:
            # In bf16 a pipeline has BF16_Optimizer, which shards at ZeRO 0 too.
            is_bf16_pipeline = self.config.train.precision == "bf16" and self.mesh.pipeline > 1
            zero_stage = self.metadata["zero_stage"]
            kind = Partitioned if zero_stage == 3 else Flattened if zero_stage or is_bf16_pipeline else Unsharded
            with self._as_deepspeed_writes():
                self._parts[key] = kind(self, stage, tensor_rank)
        return self._parts[key]

    @contextmanager
    def _as_deepspeed_writes(self) -> Iterator[None]:
        try:
            yield
        except NOT_DEEPSPEED as error:
            raise UserError(
                f"{self.folder}: its files are not laid out as DeepSpeed 0.19 does it ({error!r}); use the version that wrote them"
            ) from error

    @cached_property
    def _stage_bounds(self) -> list[int]:
        sizes = layer_sizes(self.config.model, self.layout, self.mesh.tensor)
        return stage_bounds([sum(layer) for layer in sizes], self.mesh.pipeline)

    def stage_of(self, name: str) -> int:
        """The pipeline's stage that holds a weight; of a tied one, the first."""
        layer = layer_and_key(name, self.config.model.num_layers)[0]
        return sum(bound <= layer for bound in self._stage_bounds[1:-1])

    def names_of(self, stage: int) -> list[str]:
        """Weights of a stage, in the order of its parameters."""
        is_last = stage == self.mesh.pipeline - 1
        tied = ["embed.weight"] if is_last and self.config.model.tie_embeddings else []
        return list(dict.fromkeys([*tied, *(name for name in self.shapes if self.stage_of(name) == stage)]))


class Part(Protocol):
    """What the processes of one stage and one tensor-parallel rank have saved together."""

    adam_step: int

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None: ...

    def pieces(self, name: str, kind: str) -> list[Tensor]:
        """Runs of numbers, mapped, which one after the other are this part's slice of a weight."""
        ...


class Unsharded:
    """Without ZeRO: tensors by name, and by index into the optimizer's groups."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.checkpoint, self.tensor_rank = checkpoint, tensor_rank
        # torch's state of an optimizer knows parameters by number: first those of group 0, then of group 1, each in the order
        # of the model's parameters. Which numbers are whose follows from the rule of the groups.
        state = read_state(_model_file(checkpoint, stage, tensor_rank), mmap=True)
        optimizer = state["optimizer"]
        adam = optimizer.get("optimizer_state_dict", optimizer)
        names = checkpoint.names_of(stage)
        of_run = optimizer_groups(checkpoint.shapes, checkpoint.config.train)
        groups = [[name for name in names if name in group.names] for group in of_run]
        # A stage that lacks all weights of a group has one number to spare, which is that group.
        self.index = {
            name: index
            for own, group in zip(groups, adam["param_groups"], strict=True)
            for name, index in zip(own, group["params"], strict=False)
        }
        self.moments = adam["state"]
        self.adam_step = _adam_step(self.moments.values())
        self.module = state["module"]
        if "fp32_groups" in optimizer:  # FP16_UnfusedOptimizer, of bf16; the module's weights are rounded
            masters = zip(groups, optimizer["fp32_groups"], strict=True)
            self.module = dict(pair for names, tensors in masters for pair in zip(names, tensors, strict=True))

    def pieces(self, name: str, kind: str) -> list[Tensor]:
        if kind != WEIGHTS:
            return [self.moments[self.index[name]][kind]]
        if self.module is not None:
            return [self.module[name]]
        layer, key = layer_and_key(name, self.checkpoint.config.model.num_layers)
        file = f"layer_{layer:02d}-model_{self.tensor_rank:02d}-model_states.pt"
        return [read_state(self.checkpoint.folder / file, mmap=True)[key]]


class Flattened:
    """ZeRO 1 and 2, and BF16_Optimizer: a group's weights end to end, cut into equal parts, with a map of each part."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.checkpoint = checkpoint
        self.states = _optimizer_states(checkpoint, stage, tensor_rank)
        self.adam_step = _adam_step(self.states[0]["base_optimizer_state"]["state"].values())

    def pieces(self, name: str, kind: str) -> list[Tensor]:
        if self.checkpoint.mesh.pipeline > 1:
            name = pipeline_name(name, self.checkpoint.config.model)
        # The cuts between processes fall anywhere, also within a weight: a process may have its end, all of it or none. The
        # map has, for each weight that a process has anything of, where that lies in the process's flat part of the group.
        found = []
        for state in self.states:
            for group, places in enumerate(state["param_slice_mappings"]):
                if name in places:
                    flat = state["single_partition_of_fp32_groups"][group]
                    if kind != WEIGHTS:
                        flat = state["base_optimizer_state"]["state"][group][kind]
                    found.append(flat.narrow(0, places[name].start, places[name].numel))
        return found


class Partitioned:
    """ZeRO-3: each weight is cut into equal parts, padded at its end; those of a process lie end to end in sub-groups."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.states = _optimizer_states(checkpoint, stage, tensor_rank)
        self.adam_step = _adam_step(self.states[0]["optimizer_state_dict"]["state"].values())
        self.places: dict[str, tuple[int, int, int]] = {}  # sub-group, first number there, how many
        shapes = read_state(_model_file(checkpoint, stage, tensor_rank), mmap=True)["param_shapes"]
        # Nothing says where a weight's part begins: parts lie in the order of the group's weights, and each process has as
        # many numbers of a weight as every other (rounded up), so that the sum of those before it is the place.
        for group, names in enumerate(shapes):
            start = 0
            for name, shape in names.items():
                count = -(-shape.numel() // len(self.states))
                self.places[name] = (group, start, count)
                start += count

    def pieces(self, name: str, kind: str) -> list[Tensor]:
        group, start, count = self.places[name]
        if kind == WEIGHTS:
            flats = [state["fp32_flat_groups"][group] for state in self.states]
        else:
            flats = [state["optimizer_state_dict"]["state"][group][kind] for state in self.states]
        return [flat.narrow(0, start, count) for flat in flats]


def _fill(whole: Tensor, piece: Tensor, partition: Partition, rank: int, size: int) -> None:
    """Put the slice of tensor-parallel `rank` at its places in the whole weight: no third copy, as of `unshard`.

    A rank's slice of gate and up is a slice of the gate with one of the up behind it: block by block they are far apart.
    """
    blocks = (tensor.chunk(partition.num_blocks, partition.axis) for tensor in (whole, piece))
    for block, part in zip(*blocks, strict=True):
        block.chunk(size, partition.axis)[rank].copy_(part)


def _adam_step(states: Iterable[Mapping[str, Any]]) -> int:
    """Updates that Adam counts; before its first it has no state."""
    return next((int(state["step"]) for state in states), 0)


def _model_file(checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> Path:
    of_shard = "zero_pp_rank_0_" if checkpoint.metadata["zero_stage"] == 3 else ""
    return checkpoint.folder / f"{of_shard}{_process(checkpoint, stage, tensor_rank)}_model_states.pt"


def _optimizer_states(checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> list[dict[str, Any]]:
    """What the processes saved that ZeRO divides by: those of different data or tokens."""
    prefix = "bf16_" if checkpoint.config.train.precision == "bf16" else ""
    end = f"{_process(checkpoint, stage, tensor_rank)}_optim_states.pt"
    files = (f"{prefix}zero_pp_rank_{rank}_{end}" for rank in range(checkpoint.mesh.zero_size))
    return [read_state(checkpoint.folder / file, mmap=True)["optimizer_state_dict"] for file in files]


def _process(checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> str:
    """How DeepSpeed numbers the processes that share a copy of the model."""
    return f"mp_rank_{stage * checkpoint.mesh.tensor + tensor_rank:02d}"
