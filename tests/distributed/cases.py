"""What the spawned processes of the tests run: a few training steps in one layout, and saving and resuming in the midst."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from ttt_dist.config import Config, ModelConfig, TrainConfig
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.objective import Objective

ROOT = Path(__file__).resolve().parents[2]
GLOBAL_BATCH = 8
LR = 3e-3  # large: the losses of later steps tell whether the updates agree


@dataclass(frozen=True)
class Layout:
    """One way to run the same training."""

    dp: int
    zero: int
    micro: int
    precision: str = "fp32"
    normalisation: str = "sample"
    tied: bool = False

    def __str__(self) -> str:
        tied = "-tied" if self.tied else ""
        return f"zero{self.zero}-dp{self.dp}-micro{self.micro}-{self.precision}-{self.normalisation}{tied}"

    def config(self) -> Config:
        """The run's settings; nothing is read from disk but DeepSpeed's JSON."""
        train = TrainConfig(global_batch=GLOBAL_BATCH, micro_batch=self.micro, lr=LR, clip=1.0)
        return Config(
            deepspeed=str(ROOT / f"ds_configs/zero{self.zero}.json"),
            model=ModelConfig(32, 2, 4, 2, 64, tie_embeddings=self.tied),
            objective=Objective(normalisation=self.normalisation),
            train=replace(train, precision=self.precision),
        )


def losses(layout: Layout, num_steps: int) -> list[tuple[float, float, float, float]]:
    """(loss, AR loss, NAR loss, gradient norm) of each step."""
    engine = new_engine(layout)
    return [run_step(engine, layout, step) for step in range(num_steps)]


def losses_of_local_counts(layout: Layout, num_steps: int) -> list[tuple[float, float, float, float]]:
    """`losses` with the mistake of dividing by this process's own count."""
    from ttt_dist.training import step as module

    def local_counts(batches: list[Batch], device: torch.device) -> Any:
        part = sum(batch.count for batch in batches) * dist.get_world_size()
        return module.Counts(part, 0.0, 0.0, 0.0)

    right, module.global_counts = module.global_counts, local_counts  # type: ignore[assignment]
    try:
        return losses(layout, num_steps)
    finally:
        module.global_counts = right


def resume(layout: Layout, before: int, after: int) -> tuple[list[Any], list[Any], float]:
    """Losses after a save, going on and resumed by a new engine, and the largest difference of the final weights."""
    from ttt_dist.training import checkpoint
    from ttt_dist.training.export import gather_weights

    names = [tempfile.mkdtemp()]
    dist.broadcast_object_list(names)
    folder = Path(names[0])
    facts = checkpoint.Facts.of_run(layout.config(), LAYOUT, layout.dp)
    engine = new_engine(layout)
    for step in range(before):
        run_step(engine, layout, step)
    checkpoint.save(engine, folder, before, facts, keep_last=1)
    going_on = [run_step(engine, layout, step) for step in range(before, before + after)]
    expected = gather_weights(engine)

    newest = checkpoint.latest(folder)
    assert newest is not None
    checkpoint.require_resumable(newest, facts)
    engine = new_engine(layout)
    start = checkpoint.load(engine, newest)
    resumed = [run_step(engine, layout, step) for step in range(start, before + after)]
    found = gather_weights(engine)
    checkpoint.on_first_rank(lambda: shutil.rmtree(folder))
    return going_on, resumed, max((float((expected[n] - found[n]).abs().max()) for n in expected), default=0.0)


def new_engine(layout: Layout) -> Any:
    """A fresh model in the given layout."""
    from ttt_dist.model.transformer import Transformer
    from ttt_dist.training.engine import build_engine

    config = layout.config()
    return build_engine(Transformer.for_layout(config.model, LAYOUT), config, dist.get_world_size())


def run_step(engine: Any, layout: Layout, step: int) -> tuple[float, float, float, float]:
    """One training step on this process's share of the step's packs."""
    from ttt_dist.training.step import train_step

    packs = global_batches(step + 1, GLOBAL_BATCH)[step]
    share = layout.micro * layout.dp
    firsts = range(dist.get_rank() * layout.micro, GLOBAL_BATCH, share)
    objective = layout.config().objective
    batches = [
        collate(packs[first : first + layout.micro], LAYOUT, objective, 1, [step] * layout.micro, SEQ_LEN)
        for first in firsts
    ]
    result = train_step(engine, batches, LR)
    return result.loss, result.ar_loss, result.nar_loss, result.grad_norm


def deviation(rows: list[tuple[float, ...]], reference: list[tuple[float, ...]]) -> float:
    """Largest relative difference of two runs' records."""
    found, expected = np.array(rows), np.array(reference)
    return float((np.abs(found - expected) / np.abs(expected)).max())
