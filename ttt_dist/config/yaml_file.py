"""YAML by the core rules of YAML 1.2, in which a value is what it looks like: 1:30 and 2024_01 are text, 010 is ten.

PyYAML follows YAML 1.1, in which they are 90, 202401 and 8. Here a scalar without quotes stays text (`Plain`) until it is
known what its field wants: `run_dir: 1.10` names a folder, `lr: 1.10` is a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ttt_dist.config.section import brief, require
from ttt_dist.util.errors import UserError
from ttt_dist.util.shipped import find_shipped

MAX_CHARACTERS = 1_000_000
MAX_NODES = 50_000
"""Values of a file, those that aliases repeat counted each time: aliases of aliases are billions in a few lines."""
MAX_DEPTH = 40

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_BASES = {"0o": 8, "0x": 16}
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}|0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Plain(str):
    """A scalar without quotes: text, or what `core_value` makes of it."""

    __slots__ = ()


def core_value(text: str) -> str | int | float | bool | None:
    """A scalar without quotes as YAML 1.2 reads it (core schema, section 10.3)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        base = _BASES.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1:].isalpha() else text)
    return str(text)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its scalars as text. Raises UserError naming file and line."""
    try:
        text = find_shipped(path).read_text(encoding="utf8")
    except OSError as error:
        raise UserError(f"{path}: the config cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    values = parse_yaml(text, f"{path}:")
    if values is None or values == "":
        return {}
    require(isinstance(values, dict), f"{path}: must hold sections such as `train:`, not the value {brief(values)}")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The one document in `text`. Raises UserError that begins with `where` and names the line."""
    require(len(text) <= MAX_CHARACTERS, f"{where} holds {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())
        raise UserError(f"{where}{line} is not YAML ({problem[:200]})") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; settings need no more than {MAX_DEPTH} levels") from None


def _require_bounded(root: yaml.Node) -> None:
    """Raise ConstructorError where a document, its aliases written out, is too large, too deep or without end."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > MAX_DEPTH:  # also what an alias inside its own anchor comes to
            raise _refused(f"is nested deeper than {MAX_DEPTH} levels, or contains itself", node)
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            pairs = node.value if isinstance(node, yaml.MappingNode) else [(item,) for item in node.value]
            sizes[id(node)] = 1 + sum(size(item, depth + 1) for pair in pairs for item in pair)
        if sizes[id(node)] > MAX_NODES:
            raise _refused(f"aliases repeat so much that it holds more than {MAX_NODES:,} values", node)
        return sizes[id(node)]

    size(root, 0)


def _refused(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _CoreLoader(yaml.SafeLoader):
    """Mappings, lists and text; of tags those of the core schema alone, and `<<` still merges."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        return Plain(text) if node.style is None else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML keeps the last of two equal keys and says nothing; this refuses them."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refused(f"the key `{key.value[:60]}` stands twice", key)
                seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


for _tag in ("str", "int", "float", "bool", "null"):
    _CoreLoader.yaml_constructors[f"tag:yaml.org,2002:{_tag}"] = _CoreLoader.construct_scalar
_CoreLoader.yaml_constructors |= {
    "tag:yaml.org,2002:map": _CoreLoader.construct_yaml_map,
    "tag:yaml.org,2002:seq": _CoreLoader.construct_yaml_seq,
    None: _CoreLoader.construct_undefined,
}
