"""Places on the mesh are those of Megatron-Core and of DeepSpeed's pipeline grid; slices of weights fit together."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.config.run import ParallelConfig
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.parallel.partition import PARTITIONS, padded_rows, partition_of, shard, shard_shape, unshard
from ttt_dist.util.errors import UserError

SIZES = [sizes for sizes in itertools.product((1, 2, 3), repeat=4)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_places_are_those_of_megatron(sizes: tuple[int, int, int, int]) -> None:
    from megatron.core.parallel_state import RankGenerator

    tensor, ulysses, data, pipeline = sizes
    theirs = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=ulysses, order="tp-cp-ep-dp-pp")
    parallel = ParallelConfig(tensor=tensor, pipeline=pipeline, ulysses=ulysses)
    size = tensor * ulysses * data * pipeline
    meshes = [Mesh.of(parallel, size, rank) for rank in range(size)]
    assert meshes[0].world_size == size
    for axis, place in (("tp", "tensor_rank"), ("cp", "ulysses_rank"), ("dp", "data_rank"), ("pp", "stage")):
        for group in theirs.get_ranks(axis):
            assert [getattr(meshes[rank], place) for rank in group] == list(range(len(group)))
    for mesh in meshes:
        if mesh.data_rank == mesh.ulysses_rank == 0:
            assert mesh.rank_at(mesh.tensor_rank, mesh.stage) == mesh.rank
        for shift in range(data + 1):
            peer = meshes[mesh.peer(shift)]
            assert peer.data_rank == (mesh.data_rank + shift) % data
            assert (peer.tensor_rank, peer.ulysses_rank, peer.stage) == (
                mesh.tensor_rank,
                mesh.ulysses_rank,
                mesh.stage,
            )
    assert sum(mesh.is_data_source_rank for mesh in meshes) == data
    assert sum(mesh.is_loss_rank for mesh in meshes) == data * ulysses


@pytest.mark.parametrize("sizes", [s for s in SIZES if s[1] == 1], ids=str)
def test_places_are_those_of_deepspeed(sizes: tuple[int, int, int, int]) -> None:
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    tensor, _, data, pipeline = sizes
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    for rank in range(tensor * data * pipeline):
        mesh, place = Mesh(tensor=tensor, ulysses=1, data=data, pipeline=pipeline, rank=rank), theirs.get_coord(rank)
        assert (mesh.stage, mesh.data_rank, mesh.tensor_rank) == (place.pipe, place.data, place.model)


@given(st.sampled_from(sorted(PARTITIONS)), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3))
def test_slices_fit_together(part: str, size: int, rows: int, columns: int) -> None:
    name = part if part.startswith(("embed", "head")) else f"blocks.0.attention.{part}"
    shape = (rows * 8, columns * 8) if part.endswith(("weight", "lora_A", "lora_B")) else (rows * 8,)
    whole, partition = torch.randn(shape), partition_of(name)
    slices = [shard(whole, partition, rank, size) for rank in range(size)]
    assert torch.equal(unshard(slices, partition), whole)
    if not part.startswith(("embed", "head")):
        assert {tuple(piece.shape) for piece in slices} == {shard_shape(name, shape, size)}


def test_gate_and_up_are_split_each_on_its_own() -> None:
    whole = torch.arange(8.0).unsqueeze(1)  # rows 0..3 gate, 4..7 up
    assert shard(whole, partition_of("blocks.3.mlp.gate_up.weight"), 1, 2).flatten().tolist() == [2, 3, 6, 7]


def test_norms_are_whole_and_vocabularies_padded() -> None:
    assert partition_of("blocks.0.attention_norm.weight") is None
    assert partition_of("norm.weight") is None
    assert padded_rows(168192, 1) == 168192
    assert padded_rows(168192, 4) == 168448
    assert shard_shape("embed.weight", (168192, 16), 4) == (42112, 16)


def test_tokens_that_do_not_divide_are_refused() -> None:
    require_divisible(48, ParallelConfig(tensor=2, ulysses=2, sequence_parallel=True))
    with pytest.raises(UserError, match="50 tokens .* over 4 processes"):
        require_divisible(50, ParallelConfig(tensor=2, ulysses=2, sequence_parallel=True))
