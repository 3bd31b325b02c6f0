"""A run before it starts: its settings, shards, checkpoints and processes, opened and found to fit each other. Without torch."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.checkpoint.restore import (
    find_candidates,
    objective_of_run,
    require_init_from,
    require_space,
    require_startable,
)
from ttt_dist.config.checks import check_run
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.run import TrainConfig
from ttt_dist.data.loader import PackLoader, ValidationLoader, open_loaders
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.telemetry.run_folder import require_sinks
from ttt_dist.training.callbacks import Callback, load_callbacks
from ttt_dist.training.schedule import learning_rate
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError


@dataclass(kw_only=True)
class TrainPlan:
    """A run whose settings, files and checkpoint fit together."""

    config: Recipe
    mesh: Mesh
    loader: PackLoader
    held_out: ValidationLoader | None
    metadata: CheckpointMetadata
    candidates: list[Path]
    """Checkpoints to go on from, the first one that proves whole; none: the run starts anew."""
    callbacks: list[Callback]
    """Those that the config names."""
    asked: Recipe
    """The settings as they were given, before what they leave open was filled in."""
    notes: list[str]
    """What this machine lacks for a run that is only described here."""

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run would go on from, unless it proves damaged."""
        return next(iter(self.candidates), None)


def prepare(config: Recipe, dist_info: DistInfo, resume: Path | None = None, is_elsewhere: bool = False) -> TrainPlan:
    """Open what the run needs and check that it fits, before any process group exists. Raises UserError.

    Fills in what `config` leaves open. `is_elsewhere`: the run is described on a machine that will not make it, whose disk,
    packages and folders of models do not count.
    """
    notes: list[str] = []
    asked = copy.deepcopy(config)
    candidates = find_candidates(config, resume)
    config.objective = objective_of_run(config.objective, candidates)
    check_run(config, dist_info.world_size)
    callbacks = load_callbacks(config.callbacks)
    mesh = Mesh.of(config.parallel, dist_info.world_size, dist_info.rank)
    with _noted(notes, is_elsewhere):
        require_sinks(config.telemetry)
    loader, held_out = open_loaders(config, mesh.data_rank, mesh.data)
    require_divisible(config.train.micro_batch * loader.seq_len, config.parallel)
    metadata = require_startable(config, loader.layout, dist_info.world_size, candidates)
    with _noted(notes, is_elsewhere and not Path(config.train.init_from or "").exists()):
        require_init_from(config, loader.layout)
    with _noted(notes, is_elsewhere):
        require_space(config, loader.layout)
    for candidate in candidates[:1]:
        _warn_of_another_rate(config.train, candidate)
    return TrainPlan(
        config=config, mesh=mesh, loader=loader, held_out=held_out,
        metadata=metadata, candidates=candidates, callbacks=callbacks, asked=asked, notes=notes,
    )  # fmt: skip


@contextmanager
def _noted(notes: list[str], is_note: bool) -> Iterator[None]:
    """Keep a mistake among `notes` where it is none."""
    try:
        yield
    except UserError as error:
        if not is_note:
            raise
        notes.append(str(error))


def _warn_of_another_rate(train: TrainConfig, checkpoint: Path) -> None:
    """Tell where the learning rate jumps, as it does where more steps stretch a cosine that had ended."""
    metadata = manager.read_metadata(checkpoint)
    was, step = metadata["config"]["train"], metadata["step"]
    settings = {"steps": train.steps, "lr": train.lr, "warmup": train.warmup, "min_lr_ratio": train.min_lr_ratio}
    before = learning_rate(step, was["lr"], was["warmup"], was["steps"], was["min_lr_ratio"])
    now = learning_rate(step, train.lr, train.warmup, train.steps, train.min_lr_ratio)
    changed = [f"train.{name} was {was[name]}, now {value}" for name, value in settings.items() if was[name] != value]
    if changed and step < train.steps and not math.isclose(before, now, rel_tol=0.01):
        warn(
            f"{checkpoint}: {', '.join(changed)}: the learning rate goes on at {now:.3g} instead of {before:.3g}; "
            f"train.lr={before:.3g} train.min_lr_ratio=1 would keep it"
        )
