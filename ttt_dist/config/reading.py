"""Settings from what a file, an override or a program says: pydantic checks each value, and every mistake is one line.

The line names where the value stands, its key, the value, and what would work. Which settings there are is said by
dataclasses (`ttt_dist.config.section`); nothing here knows any of them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

from ttt_dist.config.other_names import VALUES, unknown_key
from ttt_dist.config.section import Section, brief
from ttt_dist.config.yaml_file import Plain, core_value
from ttt_dist.util.errors import UserError

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter

S = TypeVar("S", bound=Section)
Key = tuple[str | int, ...]
"""The parts of a key such as `data.stages.0.from_step`."""

# Recipes used to be read by YAML 1.1, which takes these for truth values, and so do people.
_TRUTHS = {**dict.fromkeys(("yes", "on", "true"), True), **dict.fromkeys(("no", "off", "false"), False)}
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "values by name",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_BRACKETS = {"gt": "(", "ge": "[", "lt": ")", "le": "]"}


def build(
    cls: type[S],
    values: Any,
    where: str | Callable[[Key], str] = "",
    key: str = "",
    named: Callable[[str], str] = str,
) -> S:
    """A section from a mapping of plain or `Plain` values, each value checked by itself. Raises UserError.

    `where` tells in which file or override a key stands; `key` is the section's own; `named` tells how keys are written.
    """
    from pydantic import ValidationError

    typed = as_typed({} if values is None else values, cls)
    loc, told = next(_unusable(typed), ((), ""))
    if told == "":
        try:
            section: S = _adapter(typing.cast(Any, cls)).validate_json(json.dumps(typed))
            return section
        except ValidationError as error:
            errors = error.errors(include_url=False)
            first = next((item for item in errors if item["type"] == "unexpected_keyword_argument"), errors[0])
            loc, told = _problem(first, cls)
    name = key_text((*filter(None, [key]), *loc))
    told = unknown_key(name, known_keys(cls, key)) if told is None else f"{named(name)} {told}".strip()
    place = where if isinstance(where, str) else where(loc)
    raise UserError(f"{place}: {told}" if place else told)


def require_valid(section: Section, key: str = "", named: Callable[[str], str] = str) -> None:
    """Raise UserError for the first value of a section, or of those in it, that is out of range or does not fit others."""
    build(type(section), dataclasses.asdict(section), "", key, named)  # type: ignore[call-overload]
    require_fitting(section, key)


def require_fitting(section: Section, key: str = "") -> None:
    """Raise UserError where values of a section, or of those in it, do not fit each other."""
    section.check(key)
    for name, inner in vars(section).items():
        if isinstance(inner, Section):
            require_fitting(inner, f"{key}.{name}" if key else name)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The type of each field, with its range."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def choices(cls: type, name: str) -> tuple[str, ...]:
    """The values of a field that takes one of a few; none for other fields."""
    return _literals(_options(hints_of(cls)[name]))


def within(hint: Any, name: str | int) -> Any:
    """The type of what is called `name` in a section, mapping or list of type `hint`; None where it holds no such thing."""
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if _is_section(option):
            return hints_of(option).get(str(name))
        if origin is dict or (origin in (list, tuple) and str(name).isdecimal()):
            return arguments[-1]
    return None


def is_scalar(hint: Any) -> bool:
    """Whether a value of this type is one word or number."""
    return not any(_is_mapping(option) or typing.get_origin(option) in (list, tuple) for option in _options(hint))


def known_keys(hint: Any, key: str = "") -> list[str]:
    """Every key below a section of type `hint`; `*` stands for names and numbers that are the user's choice."""
    return list(_known_keys(hint, f"{key}." if key else ""))


def key_text(key: Key) -> str:
    """`train.lr` of its parts; what would break a line is written as Python writes it."""
    text = ".".join(map(str, key))
    return (text if text.isprintable() else repr(text)[1:-1])[:120]


def as_typed(value: Any, hint: Any) -> Any:
    """`value` with its scalars as what a field of type `hint` takes them for."""
    options = _options(hint)
    if isinstance(value, dict):
        typed = {str(name): as_typed(item, within(hint, name)) for name, item in value.items()}
        return next((_renamed(typed, option) for option in options if _is_section(option)), typed)
    if isinstance(value, (list, tuple)):
        return [as_typed(item, within(hint, number)) for number, item in enumerate(value)]
    value = _as_scalar(value, options) if isinstance(value, str) else value
    if value is None and type(None) not in options and any(map(_is_mapping, options)):
        return {}  # `train:` with nothing below it
    if any(typing.get_origin(option) is list for option in options):
        return [] if value is None else [as_typed(value, within(hint, 0))]
    if isinstance(value, float) and int in options and float not in options and value.is_integer():
        return int(value)
    return "off" if value is False and "off" in _literals(options) else value


def _renamed(values: dict[str, Any], cls: type[Section]) -> dict[str, Any]:
    """Values of a section by the names that they have now."""
    named = {name: value for name, value in values.items() if name in cls.FORMER_VALUES and isinstance(value, str)}
    return values | {name: cls.FORMER_VALUES[name].get(value, value) for name, value in named.items()}


def _as_scalar(text: str, options: tuple[Any, ...]) -> Any:
    is_plain = isinstance(text, Plain)
    value = core_value(text)
    if is_plain and value is None and (type(None) in options or str in options):
        return None
    if bool in options:
        return _TRUTHS.get(text.lower(), str(text))
    if "off" in _literals(options) and _TRUTHS.get(text.lower()) is False:
        return "off"
    if int in options or float in options:
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(text)
    is_untyped = not any(option is str or typing.get_origin(option) is Literal for option in options)
    return value if is_plain and is_untyped else str(text)


def _problem(error: Mapping[str, Any], cls: type) -> tuple[Key, str | None]:
    """Which key is wrong, and what is said behind it; None where there is no such key."""
    kind, value = error["type"], error["input"]
    loc = tuple(part for part in error["loc"] if part != "[key]")
    if kind == "unexpected_keyword_argument":
        return loc, None
    if kind == "missing":
        loc = loc[:-1]  # one of two values
    if kind in ("value_error", "assertion_error"):
        return loc, error["msg"].partition(", ")[2]
    hint: Any = cls
    for number, part in enumerate(loc):
        if len(_options(hint)) > 2 and re.match(
            r"str$|dict\[", str(part)
        ):  # pydantic names the option that it has tried
            loc = loc[:number]
            break
        hint = within(hint, part)
    options = _options(hint)
    if kind == "missing" and any(map(_is_section, options)):
        return loc, f"lacks {error['loc'][-1]}; give it"
    if all(map(_is_mapping, options)):
        return loc, f"is a section, not the value {brief(value)}"
    if items := next((typing.get_args(item) for item in options if typing.get_origin(item) is tuple), ()):
        example = "[0.9, 0.95]" if float in _options(items[0]) else "[10, 20]"
        return loc, f"needs {len(items)} values, e.g. {example}, not {brief(value)}"
    if kind.startswith(("greater_than", "less_than")):
        return loc, f"must {_range(hint)} {brief(value)}"
    meaning = VALUES.get(key_text(loc))
    return loc, f"must be {_wanted(options)}, not {brief(value)}" + (f"; {meaning}" if meaning else "")


def _wanted(options: tuple[Any, ...]) -> str:
    """What a field takes."""
    if literals := _literals(options):
        names = [f"one of {', '.join(map(str, literals))}"]
    else:
        kinds = [typing.get_origin(option) or option for option in options if option is not type(None)]
        names = [_TYPE_NAMES.get(kind, str(kind)) for kind in kinds]
    return " or ".join([*names, *(["null"] if type(None) in options else [])])


def _range(hint: Any) -> str:
    """The range of a number, in words that a value follows."""
    bounds: dict[str, Any] = {}
    for limit in _limits(hint):
        bounds |= {name: getattr(limit, name) for name in _BRACKETS if getattr(limit, name, None) is not None}
    low, high = (next((name for name in pair if name in bounds), None) for pair in (("gt", "ge"), ("lt", "le")))
    if low and high:
        return f"lie in {_BRACKETS[low]}{bounds[low]}, {bounds[high]}{_BRACKETS[high]}, not"
    return "be positive, not" if low == "gt" else "not be negative, but is"


def _limits(hint: Any) -> Iterator[Any]:
    """The annotations of a type and of those in it."""
    yield from getattr(hint, "__metadata__", ())
    for argument in typing.get_args(hint):
        yield from _limits(argument)


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type; without ranges."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(option for item in typing.get_args(hint) for option in _options(item))
    return (hint,)


def _literals(options: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(item for option in options if typing.get_origin(option) is Literal for item in typing.get_args(option))


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)


def _is_mapping(hint: Any) -> bool:
    return _is_section(hint) or typing.get_origin(hint) is dict


def _known_keys(hint: Any, prefix: str) -> Iterator[str]:
    for option in _options(hint):
        if _is_section(option):
            for name, inner in hints_of(option).items():
                yield prefix + name
                yield from _known_keys(inner, f"{prefix}{name}.")
        elif typing.get_origin(option) in (dict, list):
            yield from _known_keys(typing.get_args(option)[-1], f"{prefix}*.")


def _unusable(value: Any, loc: Key = ()) -> Iterator[tuple[Key, str | None]]:
    """Texts and names with characters that no folder, name or console takes, and whole numbers that no file or device holds."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _unusable(name, (*loc, name))
            yield from _unusable(item, (*loc, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unusable(item, (*loc, number))
    elif isinstance(value, str) and (found := _CONTROL.search(value)):
        yield loc, f"holds the character {found[0]!r}, which is not text; take it away"
    elif isinstance(value, int) and abs(value) >= 2**63:
        yield loc, f"is {brief(value)}, beyond 2^63; use a smaller number"
