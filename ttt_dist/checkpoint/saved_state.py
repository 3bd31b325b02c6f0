"""A checkpoint of any form and layout, seen as what it holds: whole weights by name, Adam's moments, and the run's facts."""

from pathlib import Path

from torch import Tensor

from ttt_dist.checkpoint.manager import METADATA, read_metadata
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.reading import build
from ttt_dist.model.optimizer_groups import learnt_names
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.sequence.tokens import TokenLayout

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
EMA = "ema"
KINDS = (WEIGHTS, *MOMENTS)
"""What is saved of each weight, all of it fp32: the weight that the optimizer updates, and Adam's moments by their names."""


class SavedState:
    """Base of the forms. Raises UserError where run.json is missing or broken."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metadata = read_metadata(self.folder)
        where = str(self.folder / METADATA)
        self.config = build(Recipe, self.metadata["config"], where)
        self.layout = TokenLayout.from_dict(self.metadata["layout"], where)
        self.shapes = parameter_shapes(self.config.model, self.layout.padded_vocab_size)
        """Whole shapes by our names, see `Transformer`; a tied head is the embedding."""
        self.kinds = (*KINDS, EMA) if self.config.train.ema else KINDS
        """What is saved of each weight: a moving average too where the run keeps one."""
        self.learns = learnt_names(self.shapes, self.config.train)
        """Weights that the optimizer has. Of the others, beside adapters, nothing is saved but themselves."""

    @property
    def adam_step(self) -> int:
        """Updates that Adam has made: fewer than the run's steps where some were skipped."""
        raise NotImplementedError

    def names_of_kind(self, kind: str) -> list[str]:
        """Weights of which something of this kind is saved."""
        return [name for name in self.shapes if kind == WEIGHTS or name in self.learns]

    def read(self, name: str, kind: str) -> Tensor:
        """The whole fp32 tensor of one of `kinds` that belongs to weight `name`; mapped where nothing had to be put together.

        The moving average of what does not learn is itself.
        """
        kind = WEIGHTS if kind == EMA and name not in self.learns else kind
        return self.read_rows(name, kind, 0, self.shapes[name][0])

    def read_rows(self, name: str, kind: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of that tensor, of a vector its numbers. Nothing else of it is read where it lies in files as rows."""
        raise NotImplementedError
