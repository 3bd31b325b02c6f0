"""From an engine at any ZeRO stage to a model folder that `generate.py` and `evaluate.py` read."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from ttt_dist.config import Config
from ttt_dist.errors import UserError
from ttt_dist.model.huggingface import ASSETS, export_folder
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.training.checkpoint import on_first_rank

if TYPE_CHECKING:
    import deepspeed


def gather_weights(engine: "deepspeed.DeepSpeedEngine") -> dict[str, Tensor]:
    """The whole model's weights by name on the CPU of rank 0, empty elsewhere; collective.

    At ZeRO 3 one parameter is gathered at a time, so no rank but the first ever holds more than that.
    """
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                weights[name] = parameter.detach().to("cpu", copy=True)
    return weights


def export_model(engine: "deepspeed.DeepSpeedEngine", config: Config, layout: TokenLayout, folder: Path) -> None:
    """Write the model folder from the engine's weights and what lies beside the training shard; collective."""
    weights = gather_weights(engine)
    assets = Path(config.data.train).parent
    on_first_rank(lambda: export_folder(folder, weights, config.model, layout, config.objective, assets))


def require_assets(config: Config) -> None:
    """Raise UserError where an export would lack something at the end of the run."""
    folder = Path(config.data.train).parent
    missing = [name for name in ASSETS if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)}, which the exported model needs; pack the shards again")
