"""Where a run starts from: its newest whole checkpoint of whatever layout, a model folder, or random weights.

What is asked before any process group exists comes first (without torch), what all processes do together after it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.data_skips import read_skips
from ttt_dist.checkpoint.export import require_assets
from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.config.objective import Objective
from ttt_dist.config.reading import build
from ttt_dist.config.run import Config
from ttt_dist.model.hf.families import CONFIG, LAYOUT, require_same_model
from ttt_dist.model.optimizer_groups import learnt_names, optimizer_groups
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout, released
from ttt_dist.util.console import print_rank0
from ttt_dist.util.errors import UserError
from ttt_dist.util.hub_names import require_folder

if TYPE_CHECKING:
    import deepspeed

    from ttt_dist.model.layers import WeightSource


def find_candidates(config: Config, resume: Path | None, trusts_files: bool = False) -> list[Path]:
    """Checkpoints of this run, newest first, or, where it has none yet, those that --resume names. Raises UserError.

    A thousand processes that look for each of thousands of files are too many: all but one trust the manifest, and go by what
    that one has found (`plan.agree`).
    """
    own = manager.list_checkpoints(Path(config.run_dir) / "checkpoints", trusts_files)
    if own and not config.checkpoint.resume:
        raise UserError(f"{own[0]}: run_dir holds a run already; set checkpoint.resume=true or choose another run_dir")
    return own or ([] if resume is None else manager.resolve_resume_path(resume, trusts_files))


def skips_of_run(config: Config) -> list[tuple[int, int]]:
    """`data.skip`, and the data that the run has given up on before. Raises UserError where that cannot be read."""
    return sorted([*config.data.skip, *read_skips(Path(config.run_dir))])


def objective_of_run(objective: Objective, candidates: Sequence[Path]) -> Objective:
    """`objective` with nothing left open: what it does not say is as in the newest of the checkpoints to go on from.

    A recipe without a preset thus keeps its meaning in the middle of a run, whatever the default has become since.
    """
    if not candidates:
        return objective.resolved()
    where = str(candidates[0])
    saved = build(Objective, manager.read_metadata(candidates[0])["config"]["objective"], where, "objective.")
    found = objective.going_on(saved)
    if found != objective.resolved():
        print_rank0(f"{where}: objective.preset is left open: goes on by {found}")
    return found


def require_startable(
    config: Config, layout: TokenLayout, world_size: int, candidates: list[Path]
) -> CheckpointMetadata:
    """What the run's checkpoints belong to.

    Raises UserError where the checkpoint that it would start from does not fit it, or where the export could not be
    written, or a group of weights names none.
    """
    require_assets(config)
    optimizer_groups(parameter_shapes(config.model, layout.padded_vocab_size), config.train)
    metadata = CheckpointMetadata.of_run(config, layout, world_size)
    for candidate in candidates[:1]:
        manager.require_resumable(candidate, metadata)
    return metadata


def require_init_from(config: Config, layout: TokenLayout) -> None:
    """Raise UserError where the model folder that the run would start from is another model, or of other tokens."""
    folder = config.train.init_from
    if folder is not None:
        theirs = imported_layout(folder, layout)
        require_same_model(folder, config.model)
        layout.require_same(theirs, f"train.init_from={folder}")


def require_space(config: Config, layout: TokenLayout) -> None:
    """Raise UserError where a checkpoint of the run could not be written."""
    manager.require_space(Path(config.run_dir), checkpoint_bytes(config, layout))


def checkpoint_bytes(config: Config, layout: TokenLayout) -> int:
    """What a checkpoint of the run takes, nearly: first and last stage of a pipeline both write a tied embedding."""
    shapes = parameter_shapes(config.model, layout.padded_vocab_size)
    learns = learnt_names(shapes, config.train)
    is_twice = config.parallel.pipeline > 1 and config.model.tie_embeddings
    return sum(
        manager.bytes_per_parameter(config, name in learns)
        * math.prod(shape)
        * (1 + (is_twice and name == "embed.weight"))
        for name, shape in shapes.items()
    )


def imported_layout(init_from: str, layout: TokenLayout) -> TokenLayout:
    """The token layout of the model folder `init_from`. Raises UserError where it is none, with the command that makes one."""
    what = f"train.init_from={init_from}"
    size = "--layout released" if layout.special_ids == released().special_ids else f"--codebook {layout.num_codes}"
    command = "python tools/convert_checkpoint.py import-hf --source {} --out models/{} " + size
    name = Path(init_from).name
    folder = require_folder(what, init_from, f"`{command.format('DIR', name)}` and train.init_from=models/{name}")
    if (folder / LAYOUT).is_file():
        return TokenLayout.load(folder / LAYOUT)
    if (folder / CONFIG).is_file():
        raise UserError(
            f"{what}: is a published model, which has no token for speech: `{command.format(folder, name)}`, then "
            f"train.init_from=models/{name}"
        )
    if (folder / "export" / LAYOUT).is_file():
        raise UserError(f"{what}: is a run; start from its model, train.init_from={folder / 'export'}")
    raise UserError(f"{what}: is no model folder (it lacks {LAYOUT}); name one that import-hf or a run's export wrote")


def complete_local_saves(config: Config, newest: Path | None) -> bool:
    """Whether the hosts' disks held a newer state than the checkpoint `newest`, which is a checkpoint of the run now; collective."""
    from ttt_dist.checkpoint.local_saves import restore_newest_set

    return restore_newest_set(config, newest) is not None


def choose_start(config: Config, layout: TokenLayout, candidates: list[Path]) -> "tuple[Path | None, WeightSource]":
    """The first of `candidates` that is whole, None where there is none, and what the model is to be built with; collective."""
    from ttt_dist.model.hf.folder import FolderWeights
    from ttt_dist.model.layers import RandomWeights, zero_weights

    checkpoint = manager.first_whole(candidates)
    if checkpoint is not None:
        return checkpoint, zero_weights  # all of them are about to be read
    drawn = RandomWeights(config.seed)
    if config.train.init_from is not None:
        return None, FolderWeights(config.train.init_from, config.model, layout, adapters=drawn)
    return None, drawn


def restore(
    engine: "deepspeed.DeepSpeedEngine",
    mesh: Mesh,
    config: Config,
    metadata: CheckpointMetadata,
    checkpoint: Path | None,
) -> tuple[int, dict[str, Any]]:
    """Load weights and optimizer where there is a checkpoint; updates done and the run's counters then; collective."""
    if checkpoint is None:
        return 0, {}
    from ttt_dist.parallel.zero import apply_settings

    if manager.has_layout_of(checkpoint, metadata):
        manager.load(engine, checkpoint)
    else:
        from ttt_dist.checkpoint.universal import load_universal

        print_rank0(f"{checkpoint}: of another layout of processes, its weights and moments are dealt out anew")
        load_universal(engine, mesh, config.model, metadata.layout, checkpoint)
    apply_settings(engine, config, metadata.layout, mesh)
    if checkpoint.parent == Path(config.run_dir) / "checkpoints":
        manager.on_first_rank(lambda: manager.make_newest(checkpoint, config.checkpoint))
    return manager.progress_of(checkpoint)
