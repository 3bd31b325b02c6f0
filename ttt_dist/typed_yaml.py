"""Dataclasses of settings from YAML and from `section.key=value`, with every mistake named: the key, the value, the remedy.

`ttt_dist.config` says which settings there are; nothing here knows any of them.
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

from ttt_dist.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming file and line."""
    try:
        values = yaml.safe_load(path.read_text())
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


def build(cls: type, values: Any, where: str, prefix: str = "", root: type | None = None) -> Any:
    """An instance of dataclass `cls` from a mapping found in `where`. Raises UserError.

    Within `root`, `cls` is the section whose keys begin with `prefix`.
    """
    root = root or cls
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} is a section, not the value {values!r}")
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    built = {}
    for name, value in values.items():
        if name not in known:
            raise _unknown(f"{prefix}{name}", where, root)
        hint = hints[name]
        is_section = dataclasses.is_dataclass(hint)
        built[name] = (
            build(hint, value, where, f"{prefix}{name}.", root)
            if is_section
            else _coerce(value, hint, f"{prefix}{name}", where)
        )
    return _construct(cls, built, prefix, where)


def _construct(cls: type, values: dict[str, Any], prefix: str, where: str) -> Any:
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {prefix.rstrip('.')}: {error}") from None


def override(config: Any, text: str) -> Any:
    """`config` with one setting replaced, as `section.key=value` says. Raises UserError."""
    key, separator, raw = text.partition("=")
    require(bool(separator), f"override {text!r}: write section.key=value")
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError:
        value = raw
    where = f"override {text!r}"
    values: dict[str, Any] = dataclasses.asdict(config)
    section: Any = values
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(section, dict) or not isinstance(section.get(parent), dict):
            raise _unknown(key, where, type(config))
        section = section[parent]
    if name not in section:
        raise _unknown(key, where, type(config))
    section[name] = value
    return build(type(config), values, where)


def _coerce(value: Any, hint: Any, key: str, where: str) -> Any:
    """`value` as the type `hint` asks for; YAML leaves `1e-3` a string and reads `off` as false, so both are mended here."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(value, next(item for item in arguments if item is not type(None)), key, where)
    if origin is Literal:
        if isinstance(value, bool):
            value = "on" if value else "off"
        if value not in arguments:
            raise UserError(f"{where}: {key} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_coerce(item, arguments[0], key, where) for item in items]
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise UserError(f"{where}: {key} needs {len(arguments)} values, e.g. [0.9, 0.95], not {value!r}")
        return tuple(_coerce(item, argument, key, where) for item, argument in zip(value, arguments, strict=True))
    return _coerce_scalar(value, hint, key, where)


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
    known = list(_all_keys(root, ""))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        close = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:1]
    hint = (
        f"; did you mean `{close[0]}`?" if close else f"; known sections: {', '.join(n for n in known if '.' not in n)}"
    )
    return UserError(f"{where}: unknown key `{key}`{hint}")


def _all_keys(cls: type, prefix: str) -> typing.Iterator[str]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        yield prefix + item.name
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _all_keys(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition`."""
    if not condition:
        raise UserError(message)
