"""Which steps of a recipe are done: a note for each, written when it has ended well, of its flags, inputs and outputs.

Files are known by size and time of their last change. A step whose note no longer fits is run again, and it is its command
that keeps what is finished, makes it anew, or refuses: a false alarm costs seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.recipe_steps import WITHOUT_EFFECT, Step
from ttt_dist.util.atomic_files import atomic_write

INPUTS = ("source", "manifest", "codes", "samples", "codec", "tokenizer", "text_rules", "settings")
"""Flags that name what is read; the recordings below a manifest's folder are not looked at."""


def is_done(step: Step, folder: Path) -> bool:
    """Whether the note in `folder` says what is there."""
    try:
        return bool(json.loads(_path(step, folder).read_text(encoding="utf8")) == _note(step) and _outputs(step))
    except (OSError, ValueError):
        return False


def was_done(step: Step, folder: Path) -> bool:
    """Whether the step has ended well before, be it with other settings, or of other things."""
    return _path(step, folder).is_file()


def write_note(step: Step, folder: Path) -> None:
    """Note that a step has ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(_path(step, folder)) as file:
        json.dump(_note(step), file, indent=1)


def _path(step: Step, folder: Path) -> Path:
    return folder / f"{step.name.replace(' ', '-')}.json"


def _note(step: Step) -> dict[str, Any]:
    inputs = {name: _digest(_files(step.flags[name], name)) for name in INPUTS if step.flags.get(name) is not None}
    return {"command": step.words(WITHOUT_EFFECT), "inputs": inputs, "output": _digest(_outputs(step))}


def _outputs(step: Step) -> list[Path]:
    """The files of what a step makes: a folder's, a manifest and its report, a shard or a set of shards."""
    if step.command != "pack":
        return _files(step.out)
    return [*step.out.parent.glob(f"{step.out.name}.*"), *step.out.parent.glob(f"{step.out.name}-[0-9]*-of-[0-9]*.*")]


def _files(value: Any, flag: str = "") -> list[Path]:
    """What a flag names: files, or what lies in folders but for hidden files (locks, what is half written)."""
    if isinstance(value, list):
        return [path for item in value for path in _files(item, flag)]
    path = Path(str(value).partition(":")[2] if flag == "codec" else value)
    if path.is_dir():
        return [inner for inner in path.iterdir() if not inner.name.startswith(".")]
    return [path] if path.is_file() else []


def _digest(paths: Iterable[Path]) -> str:
    """Of names, sizes and times."""
    stats = sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()
