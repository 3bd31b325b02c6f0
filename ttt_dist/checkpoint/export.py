"""From an engine at any ZeRO stage to a model folder that `generate.py` and `evaluate.py` read."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.checkpoint.manager import on_first_rank
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.run import Config
from ttt_dist.data.metadata import ASSETS, is_text_set
from ttt_dist.data.speakers import shard_speakers
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    import deepspeed


def export_model(
    engine: "deepspeed.DeepSpeedEngine", mesh: Mesh, config: Recipe, layout: TokenLayout, folder: Path, done: int
) -> None:
    """Write the model folder from the engine's weights and what lies beside a training shard; collective.

    It is a model of the objective's stage that the last of the `done` updates was of.
    """
    from ttt_dist.model.hf.folder import export_folder
    from ttt_dist.parallel.gather import full_state_dict

    weights = full_state_dict(engine, mesh, config.model, layout)
    assets, objective = assets_folder(config), config.objective.at(max(done - 1, 0))

    def write() -> None:
        try:
            decoding = config.evaluation.decode
            speakers = shard_speakers(config.data.prefixes().values())
            export_folder(
                folder, weights, config.model, layout, objective, assets, decoding=decoding, speakers=speakers
            )
        finally:
            deque(weights, maxlen=0)  # after a failure too: the other processes are sending

    if mesh.rank != 0:
        deque(weights, maxlen=0)
    on_first_rank(write)


def assets_folder(config: Config) -> Path:
    """Whose tokenizer, codec and template an export takes: the folder of the first source, by name, that has all three."""
    prefixes = config.data.prefixes().values()
    folders = [Path(prefix).parent for prefix in prefixes if not is_text_set(prefix)]
    return next((folder for folder in folders if not _missing(folder)), folders[0])


def require_assets(config: Config) -> None:
    """Raise UserError where an export would lack something at the end of the run."""
    folder = assets_folder(config)
    if missing := _missing(folder):
        raise UserError(f"{folder}: lacks {', '.join(missing)}, which the exported model needs; pack the shards again")


def _missing(folder: Path) -> list[str]:
    return [name for name in ASSETS if not (folder / name).exists()]
