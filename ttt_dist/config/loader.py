"""Recipes: read from one YAML file plus `section.key=value` overrides, and written back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ttt_dist.config.decode import BEFORE
from ttt_dist.config.other_names import unknown_key
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.reading import Key, as_typed, build, is_scalar, key_text, known_keys, require_fitting, within
from ttt_dist.config.section import Section, brief, require
from ttt_dist.config.yaml_file import Plain, parse_yaml, read_yaml
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.errors import UserError

ShapeOf = Callable[[str], Mapping[str, Any] | None]
"""The `model` section of a model folder; None where there is no such folder."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """What `read_config` reads, with nothing left open: as a run is trained that begins by it."""
    config = read_config(path, overrides)
    config.objective = config.objective.resolved()
    return config


def read_config(path: str | Path, overrides: Sequence[str] = (), shape_of: ShapeOf | None = None) -> Recipe:
    """Read a YAML file, apply overrides such as `train.lr=1e-3`, and check every value, by itself and beside the others.

    Where the file's section `model` says nothing of a shape, `shape_of` gives that of `train.init_from`.
    Raises UserError that names the file or the override, and the key (with the closest known key), or what does not fit.
    """
    values = read_yaml(Path(path))
    complete_record(values)
    config = _overridden(build(Recipe, values, str(path)), overrides)
    start, own = config.train.init_from, values.get("model") or {}
    if shape_of is not None and start is not None and not own.keys() - {"lora"} and (shape := shape_of(start)):
        config = _overridden(build(Recipe, {**values, "model": {**shape, **own}}, str(path)), overrides)
    require_fitting(config)
    return config


def complete_record(values: Any) -> None:
    """Put into the settings that an earlier build recorded what they meant there without saying so.

    Recipes that are written by hand take today's defaults; only a build writes down `stop_at_last_span`, which is no flag.
    """
    evaluation = values.get("evaluation") if isinstance(values, dict) else None
    decode = evaluation.get("decode") if isinstance(evaluation, dict) else None
    if isinstance(decode, dict) and "stop_at_last_span" in decode:
        decode.setdefault("ends", BEFORE.ends)


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved settings as YAML that `load_config` reads back to the same Recipe."""
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: Section) -> dict[str, Any]:
    """A section as plain values that YAML and JSON can hold."""
    return json.loads(json.dumps(asdict(config)))  # type: ignore[call-overload]


def _overridden(config: Recipe, overrides: Sequence[str]) -> Recipe:
    """`config` with other values for the keys that the overrides name."""
    values, given = asdict(config), [_key(text) for text in overrides]
    for key, text in zip(given, overrides, strict=True):
        _put(values, key, text, type(config))

    def where(loc: Key) -> str:
        """The last override that wrote what stands at `loc`."""
        at = tuple(map(str, loc))
        wrote = [text for key, text in zip(given, overrides, strict=True) if at[: len(key)] == key[: len(at)]]
        return f"override {brief(wrote[-1])}" if wrote else ""

    return build(type(config), values, where) if overrides else config


def _key(text: str) -> tuple[str, ...]:
    key, separator, _ = text.partition("=")
    require(bool(separator), f"override {brief(text)}: write section.key=value")
    return tuple(key.strip().split("."))


def _put(values: Any, key: tuple[str, ...], text: str, cls: type) -> None:
    """Replace one value of nested settings.

    Under a mapping of names, a new name makes a new entry (`data.blend.chat.shard=...`); items of a list are numbered from
    0 (`data.stages.0.from_step=...`).
    """
    hint: Any = cls
    where, told = f"override {brief(text)}", key_text(key)
    for number, name in enumerate(key):
        hint = within(hint, name)
        if hint is None:
            raise UserError(f"{where}: {unknown_key(told, known_keys(cls))}")
        require(
            isinstance(values, (dict, list)),
            f"{where}: {key_text(key[:number])} was given the value {brief(values)}, in which there is no {key_text((name,))}; "
            f"give {key_text(key[:number])} as a whole, or change it there",
        )
        if isinstance(values, list):
            size = len(values)
            is_there = len(name) < 10 and int(name) < size
            require(is_there, f"{where}: {told}: there are {size} items here, numbered from 0; set the list")
        place = int(name) if isinstance(values, list) else name
        if number == len(key) - 1:
            values[place] = as_typed(_parse(text.partition("=")[2], hint, where), hint)
        else:
            values = values.setdefault(place, {}) if isinstance(values, dict) else values[place]


def _parse(raw: str, hint: Any, where: str) -> Any:
    """The value of an override: YAML where a list or a section is wanted, and else the words as they stand."""
    text = raw.strip()
    if not is_scalar(hint):
        return parse_yaml(raw, f"{where}:")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        return text[1:-1]
    return Plain(text) if text else ""  # `data.train=` is no shard, whereas null is no text
