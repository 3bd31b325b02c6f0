"""Which weights are updated alike: the groups of the optimizer, by the weights' names and shapes alone.

All processes have the same groups in the same order, a checkpoint is read by them, and none of it needs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ttt_dist.config.run import ParamGroup, TrainConfig
from ttt_dist.model.structure import Shapes
from ttt_dist.util.errors import UserError

VOCABULARY = ("embed.weight", "head.weight")


@dataclass(frozen=True)
class OptimizerGroup:
    """Weights by name in the model's order, and how they are updated."""

    names: tuple[str, ...]
    lr_scale: float
    """Times the rate of the step; 0: the weights stay as they are."""
    weight_decay: float
    only_new_rows: bool = False
    """Rows of the base's text vocabulary stay as they are."""

    @property
    def is_masked(self) -> bool:
        """Whether some of its gradients are put to zero."""
        return self.only_new_rows or not self.lr_scale


def optimizer_groups(shapes: Shapes, train: TrainConfig) -> list[OptimizerGroup]:
    """Matrices, vectors (norms and biases, which do not decay), then those of each of `train.param_groups`, likewise.

    `shapes` are those of the whole model, see `parameter_shapes`. A weight belongs to the first group that names it. Raises
    UserError where one names none.
    """
    owner = {name: _owner(name, train.param_groups) for name in shapes}
    groups = []
    for number, group in enumerate([None, *train.param_groups], start=-1):
        mine = [name for name in shapes if owner[name] == number]
        if group is not None:
            _require_usable(group, mine, f"train.param_groups.{number}", shapes)
        for decay, is_wide in ((train.weight_decay, True), (0.0, False)):
            names = tuple(name for name in mine if (len(shapes[name]) > 1) == is_wide)
            if group is None:
                groups.append(OptimizerGroup(names, 1.0, decay))
            elif names:
                decay = decay if group.weight_decay is None else group.weight_decay
                is_new = group.rows == "new"
                decay = 0.0 if is_new or not group.lr_scale else decay  # or what is to stay would shrink
                groups.append(OptimizerGroup(names, group.lr_scale, decay, is_new))
    return groups


def _owner(name: str, groups: Sequence[ParamGroup]) -> int:
    """The number of the first group that names a weight; -1: none does."""
    return next((number for number, group in enumerate(groups) if fnmatchcase(name, group.params)), -1)


def _require_usable(group: ParamGroup, names: Sequence[str], key: str, shapes: Shapes) -> None:
    if not names:
        there = [name for name in shapes if not name.startswith("blocks.") or name.startswith("blocks.0.")]
        raise UserError(
            f"{key}.params={group.params} names no weight that an earlier group does not; there are {', '.join(there)} "
            "(and further blocks)"
        )
    other = next((name for name in names if name not in VOCABULARY), None)
    if group.rows == "new" and other is not None:
        raise UserError(f"{key}.rows=new is for {' and '.join(VOCABULARY)}, not for {other}: it has no rows of tokens")
