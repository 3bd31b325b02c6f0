"""What all sections of settings share: dataclasses whose types and ranges `ttt_dist.config.reading` checks.

The dataclasses are plain ones, with ranges as annotations (`Annotated[int, Gt(0)]`): pydantic, which takes a fifth of a
second to import, is loaded where values are checked and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from ttt_dist.util.errors import UserError

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]


class Section:
    """Base of the dataclasses. Values that are put in by hand are as they are; those that are read are checked."""

    # Strict: "1" is no number and true is not 1. Scalars of YAML have become what their field takes them for before.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False, "strict": True}
    FORMER_VALUES: ClassVar[dict[str, dict[str, str]]] = {}
    """By field: what a value was called in files of earlier versions, and its name now."""

    def check(self, key: str) -> None:
        """Raise UserError where values do not fit each other; `key` is the section's own, e.g. `train`."""

    def require_valid(self, key: str = "", named: Callable[[str], str] = str) -> None:
        """Raise UserError for a value outside its range, or values that do not fit; `named` tells how a key is written."""
        from ttt_dist.config.reading import require_valid

        require_valid(self, key, named)


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition`."""
    if not condition:
        raise UserError(message)


def brief(value: Any) -> str:
    """A value in one line, cut where it is long."""
    text = {None: "null", True: "true", False: "false"}[value] if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text):,} characters)"
