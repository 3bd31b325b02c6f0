"""A run before it starts: its settings, shards, checkpoints and processes, opened and found to fit each other. Without torch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.checkpoint.restore import (
    find_candidates,
    objective_of_run,
    require_init_from,
    require_space,
    require_startable,
    skips_of_run,
)
from ttt_dist.checkpoint.trajectory import RATE_SETTINGS
from ttt_dist.config.checks import check_run, check_steps
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.reading import build
from ttt_dist.config.run import Config, TrainConfig
from ttt_dist.data.loader import PackLoader, ValidationLoader, open_loaders
from ttt_dist.data.set_index import Check
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.telemetry.run_folder import require_sinks
from ttt_dist.training.callbacks import Callback, load_callbacks
from ttt_dist.training.schedule import learning_rate
from ttt_dist.util.console import warn
from ttt_dist.util.errors import AgreedError, UserError


@dataclass(kw_only=True)
class TrainPlan:
    """A run whose settings, files and checkpoint fit together."""

    config: Recipe
    mesh: Mesh
    loader: PackLoader
    held_out: dict[str, ValidationLoader]
    """By name; `` is that of a single one."""
    metadata: CheckpointMetadata
    candidates: list[Path]
    """Checkpoints to go on from, the first one that proves whole; none: the run starts anew."""
    callbacks: list[Callback]
    """Those that the config names."""
    notes: list[str]
    """What this machine lacks for a run that is only described here."""
    asked: Recipe
    """The settings as they were given, before what they leave open was filled in."""
    resume: Path | None
    """What a run without checkpoints of its own was told to start from."""

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run would go on from, unless it proves damaged."""
        return next(iter(self.candidates), None)


def prepare(
    config: Recipe,
    dist_info: DistInfo,
    resume: Path | None = None,
    is_elsewhere: bool = False,
    trusts_files: bool = False,
    candidates: list[Path] | None = None,
) -> TrainPlan:
    """Open what the run needs and check that it fits, before any process group exists. Raises UserError.

    Fills in what `config` leaves open. `is_elsewhere`: the run is described on a machine that will not make it, whose disk,
    packages and folders of models do not count. `trusts_files`: the files that JSONs list are taken to be there, until
    `agree`. `candidates`: checkpoints to go on from that have been found before.
    """
    notes: list[str] = []
    asked = deepcopy(config)
    if candidates is None:
        candidates = find_candidates(config, resume, trusts_files)
    config.data.skip = skips_of_run(config)
    config.objective = objective_of_run(config.objective, candidates)
    check_run(config, dist_info.world_size)
    callbacks = load_callbacks(config.callbacks)
    mesh = Mesh.of(config.parallel, dist_info.world_size, dist_info.rank)
    with _noted(notes, is_elsewhere):
        require_sinks(config.telemetry)
    loader, held_out = open_loaders(config, mesh.data_rank, mesh.data, "nothing" if trusts_files else "sizes")
    if config.train.tokens:
        config.train.steps = loader.sizes.steps_of(math.ceil(config.train.tokens / loader.seq_len))
    check_steps(config)
    require_divisible(config.train.micro_batch * loader.seq_len, config.parallel)
    metadata = require_startable(config, loader.layout, dist_info.world_size, candidates)
    with _noted(notes, is_elsewhere and not Path(config.train.init_from or "").exists()):
        require_init_from(config, loader.layout)
    with _noted(notes, is_elsewhere):
        require_space(config, loader.layout)
    for candidate in candidates[:1]:
        _warn_of_another_rate(config, loader.sizes, candidate)
    return TrainPlan(
        config=config, mesh=mesh, loader=loader, held_out=held_out,
        metadata=metadata, candidates=candidates, callbacks=callbacks, notes=notes,
        asked=asked, resume=resume,
    )  # fmt: skip


def agree(plan: TrainPlan, dist_info: DistInfo) -> TrainPlan:
    """The plan of all processes, made by those that trusted files: these are there; collective. Raises UserError on all alike.

    Rank 0 looks for every file of shards and checkpoints, since a thousand that do are more than a file system answers. Shards
    may lie on each machine by themselves, so one process of each looks that it has rank 0's.
    """
    sources, check = plan.loader.sources, check_of(dist_info)
    mine = _Found(sources.checksums)
    if dist_info.is_first:
        with mine.failing():
            mine.candidates = find_candidates(plan.asked, plan.resume)
    found = manager.from_first_rank(mine)
    with mine.failing():
        sources.require_files(check)
        for held_out in plan.held_out.values():
            held_out.reader.require_files(check)
        sources.require_same(found.checksums)
        if found.candidates[:1] != plan.candidates[:1] and found.failure is None:
            plan = prepare(plan.asked, dist_info, plan.resume, trusts_files=True, candidates=found.candidates)
    if failure := next(filter(None, manager.gather(mine.failure)), None):
        raise AgreedError(failure)
    return replace(plan, candidates=found.candidates)


@dataclass
class _Found:
    """What a process tells the others."""

    checksums: dict[str, str | None]
    candidates: list[Path] = field(default_factory=list)
    failure: str | None = None

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep the first mistake that is met inside."""
        try:
            yield
        except UserError as error:
            self.failure = self.failure or str(error)


def check_of(dist_info: DistInfo) -> Check:
    """What a process asks of the shards' files for all."""
    return "sizes" if dist_info.is_first else "names" if dist_info.local_rank == 0 else "nothing"


@contextmanager
def _noted(notes: list[str], is_note: bool) -> Iterator[None]:
    """Keep a mistake among `notes` where it is none."""
    try:
        yield
    except UserError as error:
        if not is_note:
            raise
        notes.append(str(error))


def _warn_of_another_rate(config: Config, sizes: StepSizes, checkpoint: Path) -> None:
    """Tell where the learning rate jumps, as it does where more steps stretch a cosine that had ended."""
    metadata = manager.read_metadata(checkpoint)
    where, step, train = f"{checkpoint}/{manager.METADATA}", metadata["step"], config.train
    saved = build(TrainConfig, metadata["config"]["train"], where, "train.")
    before, now = learning_rate(step, saved, sizes), learning_rate(step, train, sizes)
    settings = {name: (getattr(saved, name), getattr(train, name)) for name in RATE_SETTINGS}
    changed = [f"train.{name} was {was}, now {value}" for name, (was, value) in settings.items() if was != value]
    # Compared at the update before: a decay that branches off here begins with this one.
    last = max(step - 1, 0)
    is_kept = math.isclose(learning_rate(last, saved, sizes), learning_rate(last, train, sizes), rel_tol=0.01)
    if changed and step < train.steps and not is_kept:
        warn(
            f"{checkpoint}: {', '.join(changed)}: the learning rate goes on at {now:.3g} instead of {before:.3g}; "
            f"train.lr={before:.3g} train.schedule=constant train.warmup=0 would keep it"
        )
