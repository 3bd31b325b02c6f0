"""Which weights are updated alike: the groups of the optimizer, by the weights' names and shapes alone.

All processes have the same groups in the same order, a checkpoint is read by them, and none of it needs a model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ttt_dist.config.run import ParamGroup, TrainConfig
from ttt_dist.model.structure import Shapes, is_adapter
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

    `shapes` are those of the whole model, see `parameter_shapes`. A weight belongs to the first group that names it. Where there
    are adapters, other weights that no group names are in none: they stay as they are, without gradient or state. Raises
    UserError where a group names no weight, or one that cannot be told beside adapters.
    """
    owner = {name: _owner(name, train.param_groups) for name in shapes}
    if any(map(is_adapter, shapes)):
        _require_adapters(owner)
        owner = {name: number for name, number in owner.items() if number >= 0 or is_adapter(name)}
    groups = []
    for number, group in enumerate([None, *train.param_groups], start=-1):
        mine = [name for name in owner if owner[name] == number]
        if group is not None:
            _require_usable(group, mine, f"train.param_groups.{number}", shapes)
        for decay, is_wide in ((train.weight_decay, True), (0.0, False)):
            names = tuple(name for name in mine if (len(shapes[name]) > 1) == is_wide)
            if not names:
                continue
            if group is None:
                groups.append(OptimizerGroup(names, 1.0, decay))
            else:
                decay = decay if group.weight_decay is None else group.weight_decay
                is_new = group.rows == "new"
                decay = 0.0 if is_new or not group.lr_scale else decay  # or what is to stay would shrink
                groups.append(OptimizerGroup(names, group.lr_scale, decay, is_new))
    return groups


def learnt_names(shapes: Shapes, train: TrainConfig) -> set[str]:
    """Weights that are in some group, and so have a gradient and an optimizer's state."""
    return {name for group in optimizer_groups(shapes, train) for name in group.names}


def num_trained(shapes: Shapes, train: TrainConfig, num_text_tokens: int) -> int:
    """Parameters that an update may change; `num_text_tokens` are the first rows of the vocabulary."""
    return sum(
        math.prod(shapes[name]) - (num_text_tokens * shapes[name][1] if group.only_new_rows else 0)
        for group in optimizer_groups(shapes, train)
        if group.lr_scale
        for name in group.names
    )


def _require_adapters(owner: Mapping[str, int]) -> None:
    """Refuse to train, beside adapters, what is no part of a folder of peft's."""
    for name, number in owner.items():
        if number >= 0 and not is_adapter(name) and name not in VOCABULARY:
            raise UserError(
                f"train.param_groups.{number}.params names {name}: with model.lora only adapters (*_lora.*), "
                f"{' and '.join(VOCABULARY)} learn; name those, or set model.lora.r=0"
            )


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
