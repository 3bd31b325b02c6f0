"""What the spawned processes of the tests run: a few training steps in one layout, and saving and resuming in the midst."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from ttt_dist.config.model import LoraConfig, ModelConfig
from ttt_dist.config.objective import Normalisation, Objective, ObjectiveStage, Preset
from ttt_dist.config.run import (
    BatchStage,
    CheckpointConfig,
    Config,
    GuardConfig,
    ParallelConfig,
    ParamGroup,
    TrainConfig,
)
from ttt_dist.data.loader import step_sizes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.batch import Batch, collate

ROOT = Path(__file__).resolve().parents[2]
GLOBAL_BATCH = 8
BORDER = 3
LR = 3e-3  # large: the losses of later steps tell whether the updates agree


PARAM_GROUPS = [
    ParamGroup(params="embed.weight", rows="new"),
    ParamGroup(params="blocks.0.mlp.*", lr_scale=0.0),
    ParamGroup(params="*norm.weight", lr_scale=0.5, weight_decay=0.1),
    ParamGroup(params="blocks.1.attention.*", lr_scale=0.3),
]


@dataclass(frozen=True)
class Layout:
    """One way to run the same training, and the model and objective that it trains."""

    zero: int | str = 0
    """ZeRO stage, or what names a file of ds_configs/."""
    micro: int = 8
    dp: int = 1
    tensor: int = 1
    pipeline: int = 1
    ulysses: int = 1
    sequence_parallel: bool = False
    checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    fp8: bool = False
    normalisation: Normalisation = "sample"
    preset: Preset = "recommended"
    noise_schedule: str = "linear"
    p_draft: float = 0.0
    z_loss: float = 0.0
    staged: bool = False
    """Learns autoregressively before step `BORDER`."""
    tuned: bool = False
    """Some weights stay as they are or have rates of their own, the losses have weights, batches are larger from `BORDER` on."""
    adapted: bool | Literal["alone"] = False
    """Adapters learn, and unless alone rows of speech; the rest is frozen."""
    tied: bool = False
    kv_heads: int = 2
    qk_norm: bool = False

    def __str__(self) -> str:
        """What differs from the plain run."""
        changed = (field for field in fields(self) if getattr(self, field.name) != field.default)
        return "-".join(f"{field.name}={getattr(self, field.name)}" for field in changed) or "plain"

    @property
    def world_size(self) -> int:
        return self.dp * self.tensor * self.pipeline * self.ulysses

    @property
    def reference(self) -> "Layout":
        """The one-process fp32 run of the same model and objective."""
        same = (
            "normalisation", "preset", "noise_schedule", "p_draft", "z_loss", "staged", "tuned", "adapted", "tied", "kv_heads", "qk_norm",
        )  # fmt: skip
        return Layout(**{name: getattr(self, name) for name in same})

    def config(self) -> Config:
        """The run's settings; nothing is read from disk but DeepSpeed's JSON."""
        train = TrainConfig(
            global_batch=GLOBAL_BATCH, micro_batch=self.micro, lr=LR, clip=1.0, precision=self.precision,
            activation_checkpointing=self.checkpointing, compile=self.compile, fp8=self.fp8,
            batch_stages=[BatchStage(from_step=BORDER, global_batch=2 * GLOBAL_BATCH)] if self.tuned else [],
            param_groups=PARAM_GROUPS if self.tuned else self._rows if self.adapted is True else [],
            ema=0.5 if self.tuned else 0.0,
        )  # fmt: skip
        stages = [ObjectiveStage(from_step=0, kind="ar"), ObjectiveStage(from_step=BORDER)] if self.staged else []
        return Config(
            deepspeed=str(ROOT / f"ds_configs/zero{self.zero}.json"),
            model=ModelConfig(
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                num_kv_heads=self.kv_heads,
                ffn_hidden_size=64,
                qk_norm=self.qk_norm,
                tie_embeddings=self.tied,
                lora=LoraConfig(r=3 if self.adapted else 0),
            ),
            objective=Objective(
                preset=self.preset,
                normalisation=self.normalisation,
                noise_schedule=self.noise_schedule,
                p_draft=self.p_draft,
                z_loss=self.z_loss,
                ar_weight=0.5 if self.tuned else 1.0,
                nar_weight=2.0 if self.tuned else 1.0,
                stages=stages,
            ),
            train=train,
            parallel=ParallelConfig(self.tensor, self.pipeline, self.ulysses, self.sequence_parallel),
        )

    @property
    def _rows(self) -> list[ParamGroup]:
        names = ["embed.weight"] if self.tied else ["embed.weight", "head.weight"]
        return [ParamGroup(params=name, rows="new") for name in names]

    def mesh(self) -> Mesh:
        """This process's place; needs a process group."""
        return Mesh.of(self.config().parallel, dist.get_world_size(), dist.get_rank())


def losses(layout: Layout, num_steps: int) -> list[tuple[float, ...]]:
    """(loss, AR loss, NAR loss, z-loss where it counts, gradient norm) of each step."""
    with new_engine(layout) as engine:
        return [run_step(engine, layout, step) for step in range(num_steps)]


def losses_and_graphs(layout: Layout, num_steps: int) -> tuple[list[tuple[float, ...]], int]:
    """`losses`, and how many graphs the blocks were compiled into for them."""
    from ttt_dist.parallel.compile import COMPILER

    before = COMPILER.num_graphs
    return losses(layout, num_steps), COMPILER.num_graphs - before


def losses_of_local_counts(layout: Layout, num_steps: int) -> list[tuple[float, ...]]:
    """`losses` with the mistake of dividing by this process's own count."""
    from ttt_dist.training import step as module

    def local_counts(batches: list[Batch], mesh: Mesh, device: torch.device) -> Any:
        part = sum(batch.num_loss_units for batch in batches) * dist.get_world_size()
        return replace(right(batches, mesh, device), num_loss_units=part)

    right, module.global_counts = module.global_counts, local_counts  # type: ignore[assignment]
    try:
        return losses(layout, num_steps)
    finally:
        module.global_counts = right


def trained_weights(layout: Layout, num_steps: int) -> dict[str, np.ndarray]:
    """The whole weights after `num_steps`, on rank 0."""
    with new_engine(layout) as engine:
        for step in range(num_steps):
            run_step(engine, layout, step)
        return {name: weight.numpy() for name, weight in all_weights(engine, layout).items()}


def resume(layout: Layout, before: int, after: int) -> tuple[list[Any], list[Any], float]:
    """Losses after a save, going on and resumed by a new engine, and the largest difference of the final weights."""
    from ttt_dist.checkpoint import manager
    from ttt_dist.parallel.zero import apply_settings

    names = [tempfile.mkdtemp()]
    dist.broadcast_object_list(names)
    folder = Path(names[0])
    metadata = manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, dist.get_world_size())
    with new_engine(layout) as engine:
        for step in range(before):
            run_step(engine, layout, step)
        manager.save(engine, folder, before, metadata, {}, CheckpointConfig(keep_last=1))
        going_on = [run_step(engine, layout, step) for step in range(before, before + after)]
        expected = all_weights(engine, layout)

    newest = manager.latest(folder)
    assert newest is not None
    manager.require_resumable(newest, metadata)
    with new_engine(layout) as engine:
        manager.load(engine, newest)
        apply_settings(engine, layout.config(), LAYOUT, layout.mesh())
        resumed = [run_step(engine, layout, step) for step in range(before, before + after)]
        found = all_weights(engine, layout)
    manager.on_first_rank(lambda: shutil.rmtree(folder))
    return going_on, resumed, max((float((expected[n] - found[n]).abs().max()) for n in expected), default=0.0)


def skip(layout: Layout, rank: int | None, spike_factor: float = 0.0) -> tuple[list[bool], list[float], float]:
    """Three steps, with a gradient that is not finite on `rank` in the second (None: on none), or one that is a spike.

    Returns which steps were skipped, the losses, and how far the second moved the weights (rank 0).
    """
    from ttt_dist.parallel.deepspeed_adapter import wrap_optimizer_step
    from ttt_dist.training.skip_step import SkipStep

    state = {"norms": [1e-6] * 16} if spike_factor else {}  # norms that any real gradient is above by far
    guard = SkipStep(GuardConfig(spike_factor=spike_factor), state)
    skipped, found = [], []
    with new_engine(layout) as engine:
        wrap_optimizer_step(engine, guard.accepts)
        for step in range(3):
            is_second = step == 1
            guard.config.spike_factor = spike_factor if is_second else 0.0
            before = all_weights(engine, layout) if is_second else {}
            hook = None
            if is_second and rank == dist.get_rank():
                parameter = next(p for p in engine.module.parameters() if p.requires_grad)
                hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
            loss, _, _, norm = run_step(engine, layout, step)
            if hook is not None:
                hook.remove()
            skipped.append(guard.end_step(norm))
            found.append(loss)
            if is_second:
                after = all_weights(engine, layout)
                moved = max((float((after[name] - before[name]).abs().max()) for name in before), default=0.0)
    return skipped, found, moved


@contextmanager
def new_engine(layout: Layout) -> Iterator[Any]:
    """A fresh model in the given layout."""
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.parallelize import parallelize

    config, mesh = layout.config(), layout.mesh()
    try:
        yield parallelize(config, LAYOUT, mesh, RandomWeights())
    finally:
        groups.leave()


def all_weights(engine: Any, layout: Layout) -> dict[str, torch.Tensor]:
    """The whole weights on rank 0, nothing elsewhere."""
    from ttt_dist.parallel.gather import full_state_dict

    return dict(full_state_dict(engine, layout.mesh(), layout.config().model, LAYOUT))


def run_step(engine: Any, layout: Layout, step: int) -> tuple[float, ...]:
    """One training step on this process's share of the step's packs."""
    from ttt_dist.training.step import train_step

    mesh, size = layout.mesh(), step_sizes(layout.config()).global_batch(step)
    packs = global_batches(step + 1, size)[step]
    share = layout.micro * layout.dp
    firsts = range(mesh.data_rank * layout.micro, size, share)
    objective = layout.config().objective.at(step)
    batches = [
        collate(packs[first : first + layout.micro], LAYOUT, objective, 1, [step] * layout.micro, SEQ_LEN)
        for first in firsts
    ]
    result = train_step(engine, mesh, batches, LR)
    return *result.losses.record().values(), result.grad_norm


def deviation(rows: list[tuple[float, ...]], reference: list[tuple[float, ...]]) -> float:
    """Largest relative difference of two runs' records."""
    found, expected = np.array(rows), np.array(reference)
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1e-30)).max())  # what is 0 has to be 0
