"""A run before it starts: its settings, shards, checkpoints and processes, opened and found to fit each other. Without torch."""

from dataclasses import dataclass
from pathlib import Path

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.export import require_assets
from ttt_dist.config.checks import check_run
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.loader import PackLoader, ValidationLoader
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.sources import Sources
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.model.hf.families import require_same_model
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.sequence.noise_schedule import require_noise_schedules
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.telemetry.metrics import require_sinks
from ttt_dist.training.dry_run import count_parameters
from ttt_dist.util.errors import UserError


@dataclass
class TrainPlan:
    """A run whose settings, files and checkpoint fit together."""

    config: Recipe
    mesh: Mesh
    loader: PackLoader
    held_out: ValidationLoader | None
    metadata: manager.CheckpointMetadata
    candidates: list[Path]
    """Checkpoints to go on from, the first one that proves whole; none: the run starts anew."""

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run would go on from, unless it proves damaged."""
        return next(iter(self.candidates), None)


def prepare(config: Recipe, dist_info: DistInfo, resume: Path | None = None) -> TrainPlan:
    """Open what the run needs and check that it fits, before any process group exists. Raises UserError.

    Fills in what `config` leaves open.
    """
    candidates = find_candidates(config, resume)
    config.objective = manager.objective_of_run(config.objective, candidates)
    check_run(config, dist_info.world_size)
    mesh = Mesh.of(config.parallel, dist_info.world_size, dist_info.rank)
    require_sinks(config.telemetry.wandb, config.telemetry.tensorboard)
    require_noise_schedules(config.objective)
    sources = Sources.open(config.data)
    shard = sources.first
    require_assets(config)
    layout, seq_len, train = shard.layout, shard.seq_len or 0, config.train
    if train.init_from is not None:
        require_same_model(train.init_from, config.model)
        layout.require_same(
            TokenLayout.load(Path(train.init_from) / "token_layout.json"), f"train.init_from={train.init_from}"
        )
    require_divisible(train.micro_batch * seq_len, config.parallel)
    loader = PackLoader(
        sources, layout, config.objective, config.seed, seq_len, train.global_batch, train.micro_batch,
        mesh.data_rank, mesh.data, config.data.prefetch,
    )  # fmt: skip
    held_out = None
    if config.data.valid:
        valid = ShardReader(config.data.valid)
        valid.require_same_codec(shard)
        held_out = ValidationLoader(
            valid, layout, config.objective, config.seed, seq_len, train.micro_batch,
            mesh.data_rank, mesh.data, train.eval_packs or None,
        )  # fmt: skip
    metadata = manager.CheckpointMetadata.of_run(config, layout, dist_info.world_size)
    for candidate in candidates[:1]:
        manager.require_resumable(candidate, metadata)
    manager.require_space(Path(config.run_dir), sum(count_parameters(config.model, layout).values()))
    return TrainPlan(config, mesh, loader, held_out, metadata, candidates)


def find_candidates(config: Recipe, resume: Path | None) -> list[Path]:
    """Checkpoints of this run, newest first, or, where it has none yet, those that --resume names."""
    own = manager.list_checkpoints(Path(config.run_dir) / "checkpoints")
    if own and not config.checkpoint.resume:
        raise UserError(f"{own[0]}: run_dir holds a run already; set checkpoint.resume=true or choose another run_dir")
    return own or ([] if resume is None else manager.resolve_resume_path(resume))
