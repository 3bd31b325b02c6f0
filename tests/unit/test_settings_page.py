"""The tables of settings in docs/ hold every setting that there is, with the default that it has."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ttt_dist.config.corpora import CorporaConfig
from ttt_dist.config.decode import BY_TASK, DecodeSettings
from ttt_dist.config.pipeline import EvaluationConfig, PrepConfig
from ttt_dist.config.run import Config
from ttt_dist.config.yaml_file import core_value

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = {"": Config, "corpora.": CorporaConfig, "prep.": PrepConfig, "evaluation.": EvaluationConfig}
PAGES = ("training.md", "recipes.md")


@cache
def rows(*pages: str) -> dict[str, str]:
    """Key -> default, as the tables of the pages have them. In "`a.b`, `c`" c is a key of the same section."""
    found = {}
    for line in "\n".join((DOCS / page).read_text(encoding="utf8") for page in pages).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| `") else []
        if len(cells) > 1:
            names = [name.lstrip("-").replace("-", "_") for name in re.findall(r"`([\w.-]+)`", cells[0])]
            defaults = cells[1].split(", ") if len(names) > 1 else [cells[1]]
            section = names[0].rpartition(".")[0]
            keys = [name if "." in name or not section else f"{section}.{name}" for name in names]
            found |= dict(zip(keys, defaults + ["?"] * (len(keys) - len(defaults)), strict=False))
    return found


def settings(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key and default of every setting; a list or a table of sections is one."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        if hints[field.name] is DecodeSettings:
            continue  # docs/decoding.md
        if is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, default


KNOWN = {key: default for prefix, kind in SECTIONS.items() for key, default in settings(kind, prefix)}


def test_every_setting_has_its_row() -> None:
    assert sorted(KNOWN.keys() - rows(*PAGES).keys()) == []
    assert sorted({field.name for field in fields(DecodeSettings)} - {*rows("decoding.md"), *BY_TASK}) == []


def test_no_row_is_of_a_setting_that_is_gone() -> None:
    sections = {key.partition(".")[0] for key in KNOWN if "." in key}
    told = {key for key in rows(*PAGES) if key.partition(".")[0] in sections and "." in key}
    assert sorted(key for key in told - KNOWN.keys() if not key.startswith("evaluation.decode.")) == []


@pytest.mark.parametrize("key", KNOWN)
def test_a_row_tells_the_default(key: str) -> None:
    told = rows(*PAGES).get(key, "")
    if "?" in told or told.startswith(("(", "`")):  # a sentence, or several that do not fall apart
        return
    known = list(KNOWN[key]) if isinstance(KNOWN[key], tuple) else KNOWN[key]
    assert core_value(told.partition(":")[0]) == known or told == str(known)
