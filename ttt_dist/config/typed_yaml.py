"""Dataclasses of settings from YAML and from `section.key=value`, with every mistake named: the key, the value, the remedy.

`ttt_dist.config.run` says which settings there are; nothing here knows any of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from ttt_dist.util.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming file and line."""
    try:
        values = yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: the config cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{path}:{where} is not YAML ({getattr(error, 'problem', error)})") from None
    if values is None:
        return {}
    require(isinstance(values, dict), f"{path}: must hold sections such as `train:`, not {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """YAML's plain loader keeps the last of two equal keys and says nothing; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def build(cls: type, values: Any, where: str, prefix: str = "", root: type | None = None) -> Any:
    """An instance of dataclass `cls` from a mapping found in `where`. Raises UserError.

    Within `root`, `cls` is the section whose keys begin with `prefix`.
    """
    root = root or cls
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    built = {}
    for name, value in _section(values, prefix.rstrip("."), where).items():
        if name not in known:
            raise _unknown(f"{prefix}{name}", where, root)
        built[name] = _coerce(value, hints[name], f"{prefix}{name}", where, root)
    return _construct(cls, built, prefix, where)


def _section(values: Any, key: str, where: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: {key} is a section, not the value {values!r}")
    return values


def _construct(cls: type, values: dict[str, Any], prefix: str, where: str) -> Any:
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {prefix.rstrip('.')}: {error}") from None


def override(config: Any, text: str) -> Any:
    """`config` with one setting replaced, as `section.key=value` says. Raises UserError.

    Under a mapping of names, a new name makes a new entry (`data.blend.chat.shard=...`); items of a list are numbered
    from 0 (`data.stages.0.from_step=...`).
    """
    key, separator, raw = text.partition("=")
    require(bool(separator), f"override {text!r}: write section.key=value")
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError:
        value = raw
    where = f"override {text!r}"
    values: dict[str, Any] = dataclasses.asdict(config)
    section, hint = _walk(values, key.split(".")[:-1], key, type(config), where)
    name = key.split(".")[-1]
    if _within(hint, name) is None:
        raise _unknown(key, where, type(config))
    section[_place(section, name, key, where)] = value
    return build(type(config), values, where)


def _walk(values: Any, parents: list[str], key: str, root: type, where: str) -> tuple[Any, Any]:
    """What lies under the names `parents` of nested settings, and its type; entries of mappings are made on the way."""
    hint: Any = root
    for name in parents:
        hint = _within(hint, name)
        if hint is None:
            raise _unknown(key, where, root)
        place = _place(values, name, key, where)
        values = values.setdefault(place, {}) if isinstance(values, dict) else values[place]
    return values, hint


def _within(hint: Any, name: str) -> Any:
    """The type of what is called `name` in a section, mapping or list of type `hint`; None where it holds no such thing."""
    if dataclasses.is_dataclass(hint):
        return typing.get_type_hints(hint).get(name)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict or (origin is list and name.isdecimal()):
        return arguments[-1]
    return None


def _place(section: Any, name: str, key: str, where: str) -> Any:
    """`name` as a key of a mapping or an index into a list."""
    if isinstance(section, dict):
        return name
    require(
        int(name) < len(section), f"{where}: {key}: there are {len(section)} items here, numbered from 0; set the list"
    )
    return int(name)


def _coerce(value: Any, hint: Any, key: str, where: str, root: type) -> Any:
    """`value` as the type `hint` asks for; YAML leaves `1e-3` a string and reads `off` as false, so both are mended here."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where, f"{key}.", root)
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(item for item in arguments if item is not type(None)), key, where, root)
    if origin is Literal:
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value not in arguments:
            raise UserError(f"{where}: {key} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise UserError(f"{where}: {key} needs {len(arguments)} values, e.g. [0.9, 0.95], not {value!r}")
        return tuple(_coerce(item, argument, key, where, root) for item, argument in zip(value, arguments, strict=True))
    if origin in (list, dict):
        return _coerce_items(value, hint, key, where, root)
    return _coerce_scalar(value, hint, key, where)


def _coerce_items(value: Any, hint: Any, key: str, where: str, root: type) -> Any:
    """A list, or a mapping of names, whose items have one type."""
    item_hint = typing.get_args(hint)[-1]
    if typing.get_origin(hint) is dict:
        section = _section(value, key, where)
        wrong = next((name for name in section if not isinstance(name, str)), None)
        require(wrong is None, f"{where}: {key}: the name {wrong!r} is not text; put it in quotes")
        return {name: _coerce(item, item_hint, f"{key}.{name}", where, root) for name, item in section.items()}
    items = [] if value is None else value if isinstance(value, list) else [value]
    return [_coerce(item, item_hint, f"{key}.{number}", where, root) for number, item in enumerate(items)]


def _coerce_scalar(value: Any, hint: type, key: str, where: str) -> Any:
    wrong = UserError(f"{where}: {key} must be {_TYPE_NAMES.get(hint, hint.__name__)}, not {value!r}")
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
        raise wrong
    if hint is str:
        if isinstance(value, (str, int, float)):
            return str(value)
        raise wrong
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    if hint is float:
        return number
    if isinstance(value, int):
        return value
    if number != int(number):
        raise wrong
    return int(number)


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _unknown(key: str, where: str, root: type) -> UserError:
    known = [_named_like(name, key) for name in _all_keys(root, "")]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        close = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:1]
    hint = (
        f"; did you mean `{close[0]}`?" if close else f"; known sections: {', '.join(n for n in known if '.' not in n)}"
    )
    return UserError(f"{where}: unknown key `{key}`{hint}")


def _named_like(pattern: str, key: str) -> str:
    """A known key whose `*` (a name or number of the user's choice) is what `key` has in its place."""
    theirs = key.split(".")
    parts = enumerate(pattern.split("."))
    return ".".join(theirs[i] if part == "*" and i < len(theirs) else part for i, part in parts)


def _all_keys(hint: Any, prefix: str) -> typing.Iterator[str]:
    """Every key below a section of type `hint`; `*` stands for names and numbers that are the user's choice."""
    if dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint).items():
            yield prefix + name
            yield from _all_keys(inner, f"{prefix}{name}.")
    elif typing.get_origin(hint) in (dict, list):
        yield from _all_keys(typing.get_args(hint)[-1], f"{prefix}*.")


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition`."""
    if not condition:
        raise UserError(message)
