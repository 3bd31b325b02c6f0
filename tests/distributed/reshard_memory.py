"""What the processes of test_reshard_memory and of benchmarks.reshard run: a checkpoint of random weights is written, and read into
an engine of another layout while its memory is watched."""

import gc
import threading
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed.cases import Layout
from tests.distributed.random_packs import LAYOUT
from ttt_dist.checkpoint import manager
from ttt_dist.config.deepspeed import read_deepspeed, zero_stage
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config
from ttt_dist.model.layers import RandomWeights, zero_weights
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.partition import shard_shape
from ttt_dist.sequence.tokens import TokenLayout


@dataclass(frozen=True)
class Shape:
    """A model with a vocabulary of `num_rows`."""

    model: ModelConfig
    num_rows: int

    @property
    def layout(self) -> TokenLayout:
        return replace(LAYOUT, padded_vocab_size=self.num_rows)

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.model, self.num_rows)

    @property
    def num_parameters(self) -> int:
        return sum(map(prod, self.weights.values()))

    @property
    def largest_weight(self) -> int:
        """Bytes of it in fp32, as moments are and masters."""
        return 4 * max(map(prod, self.weights.values()))

    def config(self, split: Layout) -> Config:
        return replace(split.config(), model=self.model)


SMALL = Shape(Layout().config().model, 128)
"""What is imported, and kept for good, at the first use of anything is asked for with this one, before it is measured."""


def share(shape: Shape, split: Layout) -> int:
    """Bytes that each process keeps by its settings: weights of the forward pass, masters, two moments.

    Without pipelines, which deal out whole layers.
    """
    config, slices = shape.config(split), _slices(shape, split)
    stage, is_bf16 = zero_stage(config.deepspeed), split.precision == "bf16"
    numbers = 2 if is_bf16 else 4 if stage else 0  # without either, the weights are their own masters
    of_forward, of_optimizer = sum(slices), sum(slices) // (split.dp if stage else 1)
    if stage == 3:
        most = read_deepspeed(config.deepspeed)["zero_optimization"]["stage3_param_persistence_threshold"]
        stay_gathered = [count for count in slices if count <= most]
        of_forward = of_optimizer + sum(stay_gathered)
    return numbers * of_forward + manager.OPTIMIZER_BYTES * of_optimizer


def gradients(shape: Shape, split: Layout) -> int:
    """Bytes of fp32 gradients that DeepSpeed's engine has from the start: its part at ZeRO 3, and whole at ZeRO 1 in bf16."""
    stage, numbers = zero_stage(shape.config(split).deepspeed), 4 * sum(_slices(shape, split))
    return numbers // split.dp if stage == 3 else numbers if stage == 1 and split.precision == "bf16" else 0


def _slices(shape: Shape, split: Layout) -> list[int]:
    """Numbers of each weight that tensor parallelism leaves a process."""
    return [prod(shard_shape(name, whole, split.tensor)) for name, whole in shape.weights.items()]


def save(split: Layout, folders: dict[Path, Shape]) -> None:
    """Native checkpoints of models of random weights; their moments are random too."""
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.deepspeed_adapter import inner_adam, masters
    from ttt_dist.parallel.parallelize import parallelize

    mesh = split.mesh()
    for folder, shape in folders.items():
        config = shape.config(split)
        engine = parallelize(config, shape.layout, mesh, RandomWeights())
        for master in masters(engine):
            moments = {key: torch.rand_like(master) for key in ("exp_avg", "exp_avg_sq")}
            inner_adam(engine).state[master] = {"step": torch.tensor(1.0), **moments}
        metadata = manager.CheckpointMetadata.of_run(config, shape.layout, dist.get_world_size())
        manager.save(engine, folder, 1, metadata, {}, CheckpointConfig())
        groups.leave()


class Watch(threading.Thread):
    """The peak of this process's own pages since it was started; those of mapped files are nobody's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.before = threading.Event(), own_pages()
        self.peak = self.before

    def run(self) -> None:
        while not self.ended.wait(0.001):
            self.peak = max(self.peak, own_pages())

    def end(self) -> None:
        self.ended.set()
        self.join()


def own_pages() -> int:
    """Bytes of this process that are in memory and in no file."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, above what interpreter, libraries and an engine of a few thousand weights take."""

    building: int
    """At most, while the engine was made."""
    peak: int
    """At most, from before the engine was made until the checkpoint was in it."""
    kept: int
    """Once it was."""


def go_on(split: Layout, shape: Shape, folder: Path, small: Path) -> Memory:
    """Make an engine and load the checkpoint in `folder` into it, as a run does that goes on in another layout."""
    before = own_pages()
    for one, place in ((SMALL, small), (shape, folder)):
        before, building, peak, kept = _load(split, one, place)
        gc.collect()
    return Memory(building - before, peak - before, kept - before)


def _load(split: Layout, shape: Shape, folder: Path) -> tuple[int, int, int, int]:
    """Pages before, at most while the engine was made, at most until it was loaded, and then."""
    from ttt_dist.checkpoint.universal import load_universal
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.parallelize import parallelize

    checkpoint, mesh = next(folder.glob("step-*")), split.mesh()
    watch = Watch()
    watch.start()
    engine = parallelize(shape.config(split), shape.layout, mesh, zero_weights)
    building = watch.peak
    load_universal(engine, mesh, shape.model, shape.layout, checkpoint)
    watch.end()
    kept = own_pages()
    groups.leave()
    return watch.before, building, watch.peak, kept
