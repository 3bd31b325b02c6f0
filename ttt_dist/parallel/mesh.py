"""Where a process stands: its coordinates on the axes tensor, ulysses, data and pipeline. No process group is needed.

Ranks count tensor first, then ulysses, data, pipeline: neighbours, which talk most, share a machine. Megatron-Core
(order tp-cp-dp-pp, Ulysses in the place of context parallelism) and DeepSpeed's pipeline grid count the same way.
"""

from dataclasses import dataclass

from ttt_dist.config.run import ParallelConfig
from ttt_dist.util.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the axes, and the place of `rank` on them."""

    tensor: int
    ulysses: int
    data: int
    pipeline: int
    rank: int

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int, rank: int) -> "Mesh":
        """The mesh of a run whose settings `check_run` has accepted."""
        model = parallel.tensor * parallel.ulysses * parallel.pipeline
        return cls(
            tensor=parallel.tensor,
            ulysses=parallel.ulysses,
            data=world_size // model,
            pipeline=parallel.pipeline,
            rank=rank,
        )

    @property
    def world_size(self) -> int:
        return self.tensor * self.zero_size * self.pipeline

    @property
    def zero_size(self) -> int:
        """Processes that ZeRO divides a stage's weights over: those of different data or tokens, whose gradients are summed."""
        return self.data * self.ulysses

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def ulysses_rank(self) -> int:
        return self.rank // self.tensor % self.ulysses

    @property
    def data_rank(self) -> int:
        return self.rank // (self.tensor * self.ulysses) % self.data

    @property
    def stage(self) -> int:
        return self.rank // (self.tensor * self.zero_size)

    @property
    def is_data_source_rank(self) -> bool:
        """One process of all those that read the same packs: what it counts in them is counted once."""
        return self.tensor_rank == self.ulysses_rank == self.stage == 0

    @property
    def is_loss_rank(self) -> bool:
        """One process of all those that compute the same part of the loss."""
        return self.tensor_rank == 0 and self.stage == self.pipeline - 1

    def rank_at(self, tensor_rank: int, stage: int) -> int:
        """The process that holds this slice of this stage's weights, of those with data rank 0."""
        return tensor_rank + stage * self.tensor * self.zero_size

    def peer(self, shift: int) -> int:
        """The process in this one's place among those that read the packs of the data rank `shift` further on."""
        there = (self.data_rank + shift) % self.data
        return self.rank + (there - self.data_rank) * self.tensor * self.ulysses

    def __str__(self) -> str:
        sizes = {"data": self.data, "tensor": self.tensor, "ulysses": self.ulysses, "pipeline": self.pipeline}
        return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "alone"


def require_divisible(num_tokens: int, parallel: ParallelConfig) -> None:
    """Raise UserError where a micro-batch of `num_tokens` cannot be split over the processes that share its tokens."""
    share = parallel.ulysses * (parallel.tensor if parallel.sequence_parallel else 1)
    if num_tokens % share:
        raise UserError(
            f"a micro-batch of {num_tokens} tokens (train.micro_batch x the shard's seq_len) cannot be split over {share} "
            f"processes (parallel.ulysses, sequence_parallel): pack at a seq_len that is a multiple of {share}"
        )
