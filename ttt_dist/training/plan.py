"""A run before it starts: its settings, shards, checkpoints and processes, opened and found to fit each other. Without torch."""

from dataclasses import dataclass
from pathlib import Path

from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.checkpoint.restore import find_candidates, objective_of_run, require_startable
from ttt_dist.config.checks import check_run
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.loader import PackLoader, ValidationLoader, open_loaders
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.telemetry.run_folder import require_sinks
from ttt_dist.training.callbacks import Callback, load_callbacks


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

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run would go on from, unless it proves damaged."""
        return next(iter(self.candidates), None)


def prepare(config: Recipe, dist_info: DistInfo, resume: Path | None = None) -> TrainPlan:
    """Open what the run needs and check that it fits, before any process group exists. Raises UserError.

    Fills in what `config` leaves open.
    """
    candidates = find_candidates(config, resume)
    config.objective = objective_of_run(config.objective, candidates)
    check_run(config, dist_info.world_size)
    callbacks = load_callbacks(config.callbacks)
    mesh = Mesh.of(config.parallel, dist_info.world_size, dist_info.rank)
    require_sinks(config.telemetry)
    loader, held_out = open_loaders(config, mesh.data_rank, mesh.data)
    require_divisible(config.train.micro_batch * loader.seq_len, config.parallel)
    metadata = require_startable(config, loader.layout, dist_info.world_size, candidates)
    return TrainPlan(
        config=config, mesh=mesh, loader=loader, held_out=held_out,
        metadata=metadata, candidates=candidates, callbacks=callbacks,
    )  # fmt: skip
