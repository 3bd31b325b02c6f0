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
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ttt_dist.checkpoint.saved_state import EMA, WEIGHTS, SavedState
from ttt_dist.checkpoint.torch_io import read_state
from ttt_dist.model.optimizer_groups import optimizer_groups
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.partition import partition_of, rows_of_rank, shard_shape
from ttt_dist.parallel.stages import layer_and_key, layer_sizes, pipeline_name, stage_bounds
from ttt_dist.util.errors import UserError

MAPPINGS, MASTERS = "param_slice_mappings", "single_partition_of_fp32_groups"  # of ZeRO 1 and 2, by group
# What a file that is not laid out as DeepSpeed does it makes its readers raise.
NOT_DEEPSPEED = (LookupError, TypeError, AttributeError, RuntimeError)


class DeepSpeedCheckpoint(SavedState):
    """A folder RUN/checkpoints/step-N of DeepSpeed's files. Raises UserError naming what is missing or not as it should be."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.mesh = Mesh.of(self.config.parallel, self.metadata["world_size"], 0)
        self._parts: dict[tuple[int, int], Part] = {}
        self._files: dict[Path, dict[str, Any]] = {}

    @property
    def adam_step(self) -> int:
        return self._part(0, 0).adam_step

    def read_rows(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """See `SavedState.read_rows`: from the tensor-parallel slices that have any of the rows."""
        shape, partition, size = self.shapes[name], partition_of(name), self.mesh.tensor
        if partition is None or size == 1:
            return self._slice_rows(name, kind, 0, start, stop)
        rows = torch.empty((stop - start, *shape[1:]))
        num_rows = size * shard_shape(name, shape, size)[0]
        for rank in range(size):
            if partition.axis == 1:
                rows.chunk(size, 1)[rank].copy_(self._slice_rows(name, kind, rank, start, stop))
                continue
            # A rank's slice of gate and up is a slice of the gate with one of the up behind it.
            for of_whole, of_slice, count in rows_of_rank(num_rows, partition, rank, size):
                first, last = max(start, of_whole), min(stop, of_whole + count)
                if first < last:
                    moved = of_slice - of_whole
                    own = self._slice_rows(name, kind, rank, first + moved, last + moved)
                    if (first, last) == (start, stop):
                        return own
                    rows[first - start : last - start].copy_(own)
        return rows

    def _slice_rows(self, name: str, kind: str, tensor_rank: int, start: int, stop: int) -> Tensor:
        """Rows of what one tensor-parallel rank had of a weight."""
        shape = torch.Size(shard_shape(name, self.shapes[name], self.mesh.tensor))
        wanted, width = (stop - start, *shape[1:]), shape[1:].numel()
        part = self._part(self.stage_of(name), tensor_rank)
        if start == stop:
            return torch.zeros(wanted)
        if part.adam_step == 0:  # nothing has been averaged, and moments are zero
            if kind not in (WEIGHTS, EMA):
                return torch.zeros(wanted)
            kind = WEIGHTS
        with self._as_deepspeed_writes():
            run = (shape.numel(), start * width, stop * width)
            if name in self.learns:
                pieces = part.pieces(name, kind, *run)
            else:
                pieces = self._frozen_pieces(name, tensor_rank, *run)
            flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if flat.numel() != (stop - start) * width:
            raise UserError(
                f"{self.folder}: {kind} of {name} are {flat.numel()} numbers instead of {(stop - start) * width}"
            )
        return flat.view(wanted)

    def module_tensor(self, name: str, tensor_rank: int) -> Tensor:
        """A tensor-parallel rank's slice of a weight as the forward pass has it, without ZeRO 3."""
        if self.mesh.pipeline == 1:
            found: Tensor = self._file(_model_file(self, 0, tensor_rank))["module"][name]
        else:
            layer, key = layer_and_key(name, self.config.model.num_layers)
            found = self._file(self.folder / f"layer_{layer:02d}-model_{tensor_rank:02d}-model_states.pt")[key]
        return found

    def _frozen_pieces(self, name: str, tensor_rank: int, total: int, first: int, stop: int) -> list[Tensor]:
        """`Part.pieces` of a weight that the optimizer does not have, which is saved in the type of the forward pass."""
        if self.metadata["zero_stage"] < 3:
            return [piece.float() for piece in _cut([self.module_tensor(name, tensor_rank)], total, first, stop)]
        count, found = -(-total // self.mesh.zero_size), []  # of each process; the last ones end in padding
        for number in range(first // count, -(-stop // count)):
            file = self._file(_model_file(self, self.stage_of(name), tensor_rank, number))
            part, begin = file["frozen_param_fragments"][name].detach().flatten(), number * count
            found.append(part[max(first - begin, 0) : stop - begin].float())
        return found

    def _file(self, path: Path) -> dict[str, Any]:
        if path not in self._files:
            self._files[path] = read_state(path, mmap=True)
        return self._files[path]

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

    def groups_of(self, stage: int) -> list[list[str]]:
        """Weights of a stage by the optimizer's groups."""
        names = self.names_of(stage)
        groups = optimizer_groups(self.shapes, self.config.train)
        return [[name for name in names if name in group.names] for group in groups]


class Part(Protocol):
    """What the processes of one stage and one tensor-parallel rank have saved together."""

    adam_step: int

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None: ...

    def pieces(self, name: str, kind: str, total: int, first: int, stop: int) -> list[Tensor]:
        """Runs of numbers, mapped, which one after the other are numbers [first, stop) of this part's slice of a weight, which
        has `total`; other ones where the files are not as they should be."""
        ...


def _cut(pieces: Iterable[Tensor], total: int, first: int, stop: int) -> list[Tensor]:
    """Numbers [first, stop) of pieces that are `total` numbers together; all of them where they are not so many."""
    flats = [piece.detach().flatten() for piece in pieces]
    ends = list(accumulate(map(len, flats)))
    if ends[-1:] != [total]:
        return flats
    spans = zip(flats, [0, *ends], strict=False)
    return [
        flat[max(first - begin, 0) : stop - begin]
        for flat, begin in spans
        if begin < stop and first < begin + len(flat)
    ]


class Unsharded:
    """Without ZeRO: tensors by name, and by index into the optimizer's groups."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.checkpoint, self.tensor_rank = checkpoint, tensor_rank
        # torch's state of an optimizer knows parameters by number: first those of group 0, then of group 1, each in the order
        # of the model's parameters. Which numbers are whose follows from the rule of the groups.
        state = read_state(_model_file(checkpoint, stage, tensor_rank), mmap=True)
        optimizer = state["optimizer"]
        adam = optimizer.get("optimizer_state_dict", optimizer)
        groups = checkpoint.groups_of(stage)
        # A stage that lacks all weights of a group has one number to spare, which is that group.
        self.index = {
            name: index
            for own, group in zip(groups, adam["param_groups"], strict=True)
            for name, index in zip(own, group["params"], strict=False)
        }
        self.moments = adam["state"]
        self.adam_step = _adam_step(self.moments.values())
        # FP16_UnfusedOptimizer, of bf16, where the module's weights are rounded.
        masters = zip(groups, optimizer.get("fp32_groups", [[]] * len(groups)), strict=True)
        self.masters = dict(pair for names, tensors in masters for pair in zip(names, tensors, strict=bool(tensors)))

    def pieces(self, name: str, kind: str, total: int, first: int, stop: int) -> list[Tensor]:
        return _cut([self._tensor(name, kind)], total, first, stop)

    def _tensor(self, name: str, kind: str) -> Tensor:
        if kind != WEIGHTS:
            return self.moments[self.index[name]][kind]
        return self.masters[name] if self.masters else self.checkpoint.module_tensor(name, self.tensor_rank)


class Flattened:
    """ZeRO 1 and 2, and BF16_Optimizer: a group's weights end to end, cut into equal parts, with a map of each part."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.checkpoint = checkpoint
        self.states = OptimizerStates(checkpoint, stage, tensor_rank)
        self.adam_step = _adam_step(self.states[0]["base_optimizer_state"]["state"].values())
        self.places: dict[str, tuple[int, int]] = {}
        """Group, and the weight's first number there."""
        for number, names in enumerate(checkpoint.groups_of(stage)):
            start = 0
            for name in names:
                self.places[name] = (number, start)
                start += prod(shard_shape(name, checkpoint.shapes[name], checkpoint.mesh.tensor))

    def pieces(self, name: str, kind: str, total: int, first: int, stop: int) -> list[Tensor]:
        key = pipeline_name(name, self.checkpoint.config.model) if self.checkpoint.mesh.pipeline > 1 else name
        # The cuts between processes fall anywhere, also within a weight: a process may have its end, all of it or none. The
        # map has, for each weight that a process has anything of, where that lies in the process's flat part of the group.
        found = self._where_expected(name, key, kind, total, first, stop)
        if found is not None:
            return found
        pieces = (
            self._piece(state, group, key, kind) for state in self.states for group in range(len(state[MAPPINGS]))
        )
        return _cut((piece for piece in pieces if piece is not None), total, first, stop)

    def _where_expected(self, name: str, key: str, kind: str, total: int, first: int, stop: int) -> list[Tensor] | None:
        """From the few files that have these numbers if each group is cut where its length says; None where it is not."""
        group, offset = self.places[name]
        if group >= len(self.states[0][MAPPINGS]):
            return None
        length, found = len(self.states[0][MASTERS][group]), []
        for number in range((offset + first) // length, -(-(offset + stop) // length)):
            begin, end = max(number * length - offset, 0), min((number + 1) * length - offset, total)
            piece = self._piece(self.states[number], group, key, kind) if number < len(self.states) else None
            if piece is None or len(piece) != end - begin:
                return None
            found.append(piece[max(first - begin, 0) : stop - begin])
        return found

    @staticmethod
    def _piece(state: dict[str, Any], group: int, key: str, kind: str) -> Tensor | None:
        """What a process has of a weight, if it is of this group."""
        place = state[MAPPINGS][group].get(key)
        if place is None:
            return None
        flat: Tensor = state[MASTERS][group] if kind == WEIGHTS else state["base_optimizer_state"]["state"][group][kind]
        return flat.detach().narrow(0, place.start, place.numel)


class Partitioned:
    """ZeRO-3: each weight is cut into equal parts, padded at its end; those of a process lie end to end in sub-groups."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        self.states = OptimizerStates(checkpoint, stage, tensor_rank)
        self.adam_step = _adam_step(self.states[0]["optimizer_state_dict"]["state"].values())
        self.places: dict[str, tuple[int, int, int, int]] = {}
        """Sub-group, first number there, how many; and how many in all parts."""
        shapes = read_state(_model_file(checkpoint, stage, tensor_rank), mmap=True)["param_shapes"]
        # Nothing says where a weight's part begins: parts lie in the order of the group's weights, and each process has as
        # many numbers of a weight as every other (rounded up), so that the sum of those before it is the place.
        for group, names in enumerate(shapes):
            start = 0
            for name, shape in names.items():
                count = -(-shape.numel() // len(self.states))
                self.places[name] = (group, start, count, shape.numel())
                start += count

    def pieces(self, name: str, kind: str, total: int, first: int, stop: int) -> list[Tensor]:
        group, start, count, there = self.places[name]
        if there != total:
            first, stop = 0, there
        found = []
        for number in range(first // count, -(-stop // count)):
            state = self.states[number]
            flats = state["fp32_flat_groups"] if kind == WEIGHTS else None
            flat = flats[group] if flats is not None else state["optimizer_state_dict"]["state"][group][kind]
            begin = number * count
            found.append(flat.detach().narrow(0, start, count)[max(first - begin, 0) : stop - begin])
        return found


def _adam_step(states: Iterable[Mapping[str, Any]]) -> int:
    """Updates that Adam counts; before its first it has no state."""
    return next((int(state["step"]) for state in states), 0)


def _model_file(checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int, zero_rank: int = 0) -> Path:
    of_shard = f"zero_pp_rank_{zero_rank}_" if checkpoint.metadata["zero_stage"] == 3 else ""
    return checkpoint.folder / f"{of_shard}{_process(checkpoint, stage, tensor_rank)}_model_states.pt"


class OptimizerStates:
    """What the processes saved that ZeRO divides by: those of different data or tokens. A file is opened when it is asked for,
    since of a thousand a process needs some two or three."""

    def __init__(self, checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> None:
        prefix = "bf16_" if checkpoint.config.train.precision == "bf16" else ""
        end = f"{_process(checkpoint, stage, tensor_rank)}_optim_states.pt"
        self._files = [
            checkpoint.folder / f"{prefix}zero_pp_rank_{rank}_{end}" for rank in range(checkpoint.mesh.zero_size)
        ]
        self._read: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number not in self._read:
            self._read[number] = read_state(self._files[number], mmap=True)["optimizer_state_dict"]
        return self._read[number]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))


def _process(checkpoint: DeepSpeedCheckpoint, stage: int, tensor_rank: int) -> str:
    """How DeepSpeed numbers the processes that share a copy of the model."""
    return f"mp_rank_{stage * checkpoint.mesh.tensor + tensor_rank:02d}"
