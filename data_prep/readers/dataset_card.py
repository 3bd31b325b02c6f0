"""What the card of a Hugging Face data set, its README.md, says of its files: `configs:` names the files of each split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt_dist.config.yaml_file import parse_yaml
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def declared_splits(folder: Path) -> dict[Path, str]:
    """The split of each file that `configs:` names, in the first configuration that does; empty where none is declared.

    A folder that is named stands for the files in it. A card that cannot be read is told, and the names of files decide.
    """
    splits: dict[Path, str] = {}
    for split, pattern in _patterns(folder):
        for path in _matching(folder, pattern):
            splits.setdefault(path, split)
            if path.is_dir():
                for below in path.rglob("*"):
                    splits.setdefault(below, split)
    return splits


def _matching(folder: Path, pattern: str) -> list[Path]:
    if ".." in Path(pattern).parts:  # would search what lies above
        return []
    try:
        return sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError, OSError):  # an address, an absolute path
        return []


def _patterns(folder: Path) -> Iterator[tuple[str, str]]:
    """(split, pattern of paths) in order; files that are named without a split are of `train`, as in `datasets`."""
    for config in _configs(folder / CARD):
        below = f"{config['data_dir']}/" if isinstance(config.get("data_dir"), str) else ""
        named = config.get("data_files")
        if isinstance(named, dict):
            items: list[Any] = [{"split": split, "path": path} for split, path in named.items()]
        else:
            items = named if isinstance(named, list) else [named]
        for item in items:
            item = item if isinstance(item, dict) else {"split": "train", "path": item}
            paths = item.get("path")
            for path in paths if isinstance(paths, list) else [paths]:
                if isinstance(path, str) and path and isinstance(item.get("split"), str):
                    yield item["split"], below + path


def _configs(card: Path) -> list[dict[str, Any]]:
    try:
        found = FRONT_MATTER.match(card.read_text("utf-8"))
        values = parse_yaml(found[1], str(card)) if found else None
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, UserError) else f"{card}: cannot be read ({error})"
        warn(f"{reason}; splits are taken from the names of files")
        return []
    configs = values.get("configs") if isinstance(values, dict) else None
    return [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
