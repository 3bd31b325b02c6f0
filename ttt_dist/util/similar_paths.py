"""Folders whose path was mistyped: what lies there by a name like it, `step-60` for step-00000060."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

_STEP = re.compile(r"step-[0-9]+")
_MOST = 5  # names that a line tells


def remedy_for(path: Path, otherwise: str) -> str:
    """What to do about a folder that is not there: take the one of a like name, or one of the steps there are; else `otherwise`."""
    try:
        if path.is_dir():
            return otherwise
        found = _similar_folder(path)
        if found is not None:
            return f"did you mean {found}?"
        steps = sorted(name for name in _folders(path.parent) if _STEP.fullmatch(name))
    except (OSError, ValueError):  # what may not be looked into, or no folder can be called
        return otherwise
    more = "..., " if len(steps) > _MOST else ""
    return f"{path.parent} has {more}{', '.join(steps[-_MOST:])}" if steps else otherwise


def _similar_folder(path: Path) -> Path | None:
    """The folder of which each part of the path is called so, or nearly; None where there is none."""
    if path.is_dir():
        return path
    above = None if path == path.parent else _similar_folder(path.parent)
    if above is None:
        return None
    names = [path.name] if (above / path.name).is_dir() else _similar_names(path.name, _folders(above))
    return above / names[0] if names else None


def _similar_names(name: str, names: Sequence[str]) -> list[str]:
    """Those of the same numbers, whatever zeros stand before them: another step is no mistyped one."""
    alike = {_bare(other): other for other in names if _numbers(other) == _numbers(name)}
    cutoff = 0.4 if _numbers(name) else 0.7  # the numbers say much
    return [alike[bare] for bare in difflib.get_close_matches(_bare(name), alike, n=1, cutoff=cutoff)]


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall("[0-9]+", name)]


def _bare(name: str) -> str:
    return re.sub("0*([0-9]+)", r"\1", name)


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
