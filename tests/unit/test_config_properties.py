"""Any settings survive YAML, and any value for any key is taken or refused in one line that names the key."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_dist.config.loader import load_config, save_config, to_dict
from ttt_dist.config.pipeline import Recipe
from ttt_dist.config.reading import build, hints_of, is_scalar, known_keys, within
from ttt_dist.config.section import Section
from ttt_dist.config.yaml_file import read_yaml
from ttt_dist.util.errors import UserError

TEXTS = st.one_of(
    st.sampled_from(
        ["1.10", "010", "1:30", "2024_01", "run #3", "null", "yes", "off", "~", "{a}", "[1", "'", '"a"', "1e3"]
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8),
)
WORDS = st.one_of(
    TEXTS,
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["true", "-1", "0", "1e400", "9" * 5000, "[1, 2]", "[0.1, 0.2]", "{a: {b: 1}}", "{", "!!set {}", "*a", ""]
    ),
)
KEYS = [key for key in known_keys(Recipe) if "*" not in key]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text("")
    return path


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KEYS), WORDS)
def test_any_value_is_taken_or_refused_in_a_line_that_names_the_key(empty: Path, key: str, word: str) -> None:
    config, refusal = loaded(empty, f"{key}={word}")
    assert config is None or is_of(value_at(config, key), hint_of(key))
    assert config is not None or key in refusal


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused_in_a_line(empty: Path, text: str) -> None:
    loaded(empty, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*hints_of(Recipe), "trian"]), JSON, max_size=3))
def test_any_file_is_taken_or_refused_in_a_line(empty: Path, values: dict[str, Any]) -> None:
    path = empty.with_name("any.yaml")
    path.write_text(yaml.safe_dump(values), encoding="utf8")
    loaded(path)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return is_of(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, item) for item in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple):
        return all(is_of(item, arguments[0]) for item in value)
    if hint is Any:
        return True
    return type(value) is hint if origin is None else isinstance(value, origin)


def fields_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type that stand by themselves; whether they fit others is not asked."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        limit = hint.__metadata__[0]
        bounds = {
            name: getattr(limit, name) for name in ("gt", "ge", "lt", "le") if getattr(limit, name, None) is not None
        }
        low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le", 10**12))
        if arguments[0] is int:
            return st.integers(low + ("gt" in bounds), high - ("lt" in bounds))
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(fields_of, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(TEXTS, fields_of(arguments[1]), max_size=2)
    if origin is list:
        return st.lists(fields_of(arguments[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*map(fields_of, arguments))
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: fields_of(inner) for name, inner in hints_of(hint).items()})
    plain = {
        bool: st.booleans(),
        str: TEXTS,
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(),
        Any: st.one_of(st.booleans(), st.integers(-9, 9)),
    }
    return st.none() if hint is type(None) else plain[hint]


@settings(max_examples=100, deadline=None)
@given(fields_of(Recipe))
def test_any_settings_survive_yaml_and_json(empty: Path, config: Recipe) -> None:
    path = empty.with_name("saved.yaml")
    save_config(config, path)
    assert build(Recipe, read_yaml(path), str(path)) == config
    assert build(Recipe, json.loads(json.dumps(to_dict(config)))) == config


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_scalar_survives_an_override(empty: Path, data: st.DataObject) -> None:
    """What a text holds is not looked at, but for spaces around it, quotes around all of it, and null where it is a choice."""
    key = data.draw(st.sampled_from([key for key in KEYS if is_scalar(hint_of(key)) and hint_of(key) is str]))
    text = data.draw(TEXTS.filter(lambda text: text == text.strip() and text[:1] not in ("'", '"')))
    config, refusal = loaded(empty, f"{key}={text}")
    assert key in refusal if config is None else value_at(config, key) == text


def loaded(path: Path, *overrides: str) -> tuple[Recipe | None, str]:
    """The settings, or why they are refused: in one line, whatever they are."""
    try:
        return load_config(path, overrides), ""
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal and len(refusal) < 600
    return None, refusal


def value_at(config: Recipe, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def hint_of(key: str) -> Any:
    hint: Any = Recipe
    for name in key.split("."):
        hint = within(hint, name)
    return hint


def test_sections_are_all_checked() -> None:
    """No section is a bare dataclass, which would take anything."""
    for key in known_keys(Recipe):
        hint = Recipe if "*" in key else hint_of(key)
        assert not dataclasses.is_dataclass(hint) or issubclass(hint, Section)
