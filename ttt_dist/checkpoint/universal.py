"""A universal checkpoint: whole fp32 weights and Adam moments under Hugging Face's names, in safetensors.

    DIR/run.json  weights/  exp_avg/  exp_avg_sq/  manifest.json

It is written from a checkpoint of any layout, and read into any other, one weight at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.checkpoint.manager import METADATA, UNIVERSAL, gather, read_metadata
from ttt_dist.checkpoint.manifest import write_manifest_of_folder
from ttt_dist.checkpoint.saved_state import SavedState
from ttt_dist.config.model import ModelConfig
from ttt_dist.model.hf.export_files import write_json
from ttt_dist.model.hf.folder import MAX_SHARD_BYTES, FolderWeights, new_folder, write_weights
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.console import Progress
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    import deepspeed

ADAM_STEP = "adam_step"


class UniversalCheckpoint(SavedState):
    """A folder that `write_universal` has written. Raises UserError naming the file that is missing or broken."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._tensors = {kind: FolderWeights(self.folder / kind, self.config.model) for kind in self.kinds}

    @property
    def adam_step(self) -> int:
        return int(self.metadata[ADAM_STEP])

    def read_rows(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        return self._tensors[kind].rows(name, self.shapes[name], start, stop)


def open_checkpoint(folder: str | Path) -> SavedState:
    """A checkpoint of either form. Raises UserError."""
    is_portable = read_metadata(Path(folder)).get("form") == UNIVERSAL
    return UniversalCheckpoint(folder) if is_portable else DeepSpeedCheckpoint(folder)


def write_universal(source: SavedState, out: str | Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the universal form of a checkpoint; an older folder `out` is replaced when the new one is complete.

    Raises UserError where the source is broken or the disk is full.
    """
    names = [name for kind in source.kinds for name in source.names_of_kind(kind)]
    num_numbers = sum(torch.Size(source.shapes[name]).numel() for name in names)
    with (
        new_folder(out) as place,
        Progress(4 * num_numbers / 1e6, f"writing {out}", "MB") as progress,
    ):
        for kind in source.kinds:
            (place / kind).mkdir()
            of = source.names_of_kind(kind)
            write_weights(place / kind, _each(source, kind, of, progress), source.config.model, max_shard_bytes, of)
        write_json(place / METADATA, {**source.metadata, "form": UNIVERSAL, ADAM_STEP: source.adam_step})
        write_manifest_of_folder(place)


def _each(source: SavedState, kind: str, names: list[str], progress: Progress) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        tensor = source.read(name, kind)
        yield name, tensor
        progress.advance(tensor.nbytes / 1e6)


def load_universal(
    engine: "deepspeed.DeepSpeedEngine", mesh: Mesh, config: ModelConfig, layout: TokenLayout, folder: str | Path
) -> None:
    """Put weights, Adam's moments and its step into a fresh engine of any layout; collective.

    `folder` may have either form. Each process reads, one at a time, the weights that it holds anything of. Raises
    UserError on all processes alike.
    """
    # Imports DeepSpeed, which takes seconds; writing has no need of it.
    from ttt_dist.checkpoint.optimizer_state import load_optimizer_state
    from ttt_dist.parallel.deepspeed_adapter import refresh_model_weights

    failure: UserError | None = None
    try:
        source = open_checkpoint(folder)
        layout.require_same(source.layout, str(folder))
        load_optimizer_state(source, engine, mesh, config)
    except UserError as error:
        failure = error
    for other in gather(failure):
        if other is not None:
            raise other
    refresh_model_weights(engine)
