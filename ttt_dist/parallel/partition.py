"""Which axis of which weight tensor parallelism splits: one table for first weights, exports and conversions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Partition(NamedTuple):
    """A weight is `num_blocks` equal blocks along `axis`; each rank has a slice of every block, laid end to end."""

    axis: int
    num_blocks: int = 1


# By the last two parts of a weight's name; weights that are not here are whole on every rank.
PARTITIONS = {
    "embed.weight": Partition(0),
    "head.weight": Partition(0),
    "qkv.weight": Partition(0),
    "qkv.bias": Partition(0),
    "gate_up.weight": Partition(0, num_blocks=2),
    "out.weight": Partition(1),
    "down.weight": Partition(1),
    # Adapters: of a map whose outputs are split those of B, of one whose inputs are split those of A.
    **{f"{part}_proj.lora_B": Partition(0) for part in ("q", "k", "v", "gate", "up")},
    **{f"{part}_proj.lora_A": Partition(1) for part in ("o", "down")},
}

# Their rows are classes; a rank's slice is a multiple of this many.
VOCABULARY_WEIGHTS = ("embed.weight", "head.weight")
ROW_MULTIPLE = 128


def partition_of(name: str) -> Partition | None:
    """How the weight `name` (such as blocks.0.mlp.down.weight) is split; None: not at all."""
    return PARTITIONS.get(".".join(name.split(".")[-2:]))


def shard(whole: Tensor, partition: Partition | None, rank: int, size: int) -> Tensor:
    """The slice of `whole` that belongs to `rank` of `size`. The axis must divide."""
    import torch

    if partition is None:
        return whole
    blocks = whole.chunk(partition.num_blocks, partition.axis)
    return torch.cat([block.chunk(size, partition.axis)[rank] for block in blocks], partition.axis)


def unshard(shards: Sequence[Tensor], partition: Partition | None) -> Tensor:
    """The inverse of `shard`: the whole weight of all ranks' slices, in order of rank."""
    import torch

    if partition is None:
        return shards[0]
    blocks = zip(*(piece.chunk(partition.num_blocks, partition.axis) for piece in shards), strict=True)
    return torch.cat([torch.cat(slices, partition.axis) for slices in blocks], partition.axis)


def rows_of_rank(num_rows: int, partition: Partition, rank: int, size: int) -> Iterator[tuple[int, int, int]]:
    """A weight of `num_rows` rows that is split along them: (first row in the whole, first row in the slice, how many) of each
    run of rows that `rank` has."""
    length = num_rows // size // partition.num_blocks
    for block in range(partition.num_blocks):
        yield (block * size + rank) * length, block * length, length


def shard_shape(name: str, shape: Sequence[int], size: int) -> tuple[int, ...]:
    """Shape of one rank's slice of the weight `name` of `shape`, the vocabulary's padding included."""
    lengths, partition = list(shape), partition_of(name)
    if name in VOCABULARY_WEIGHTS:
        lengths[0] = padded_rows(lengths[0], size)
    if partition is not None:
        lengths[partition.axis] //= size
    return tuple(lengths)


def padded_rows(num_rows: int, size: int) -> int:
    """Rows of embedding and head over `size` ranks: zero rows are added, so that no checkpoint depends on `size`."""
    multiple = ROW_MULTIPLE * size
    return num_rows if size == 1 else -(-num_rows // multiple) * multiple
