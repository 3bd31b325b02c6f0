"""The lines of a data file as items: a manifest (JSONL), a JSON list, or a table (CSV, TSV).

What is broken, or lacks what the task needs, becomes a message in its place: it is told and counted with the part of the
evaluation that it falls into.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_dist.manifest.entry import Entry, check_recordings, is_deep, is_unicode, seconds_of
from ttt_dist.manifest.problems import Collected
from ttt_dist.manifest.records import TABLES, read_records
from ttt_dist.manifest.text_files import suffix_of
from ttt_dist.util.errors import UserError

Prepare = Callable[[Entry], Entry]
"""An entry as a task takes it, under the project's names of fields; UserError where it lacks something."""


@dataclass(frozen=True)
class Item:
    """One line of the data: what a task needs of it."""

    id: str
    where: str
    """File and line, for messages."""
    entry: Entry
    number: int = 1
    """Among the data's items, usable or not, from 1."""

    @property
    def lang(self) -> str | None:
        """Its language, where the data says it."""
        lang = self.entry.get("lang")
        return lang if isinstance(lang, str) else None

    def record(self) -> dict[str, Any]:
        """How every record of it begins."""
        known = {name: self.entry[name] for name in ("lang", "speaker") if self.entry.get(name)}
        seconds = seconds_of(self.entry.get("duration"))  # a table has texts
        length = {} if seconds is None else {"duration": seconds}
        return {"id": self.id, "where": self.where, **known, **length}


def read_items(path: Path, prepare: Prepare, limit: int | None = None) -> list[Item | str]:
    """The first `limit` lines in order: an item, or the message of one that cannot be used.

    An item without `id` gets the number of its line, blank ones not counted. Raises UserError where the file cannot be read.
    """
    lines: list[Item | str] = []
    seen: set[str] = set()
    for place, entry in _entries(path, Collected(lines)):
        lines.append(_item(entry, place, len(lines) + 1, prepare, seen))
        if limit is not None and len(lines) >= limit:
            break
    return lines[:limit]


def _item(entry: Any, place: str, number: int, prepare: Prepare, seen: set[str]) -> Item | str:
    if not isinstance(entry, dict):
        return f"{place}: is {type(entry).__name__}, not an object; write one object per item"
    if is_deep(entry):
        return f"{place}: lists and objects stand in each other too deep; flatten the item"
    if not is_unicode(json.dumps(entry, ensure_ascii=False)):
        return f"{place}: is not UTF-8; convert the file"
    name = str(entry.get("id") or number)
    try:
        prepared = prepare(entry)
    except UserError as error:
        return f"{place}: {error}"
    try:
        check_recordings(prepared, place)
    except UserError as error:
        return str(error)
    if name in seen:
        return f"{place}: id {name!r} came before; make ids unique"
    seen.add(name)
    return Item(name, place, prepared, number)


def _entries(path: Path, problems: Collected) -> Iterator[tuple[str, Any]]:
    """(`file:line`, entry) of every line that can be read; empty cells of a table are no fields."""
    is_table = suffix_of(path) in TABLES
    for place, entry in read_records(path, problems):
        yield place, {name: value for name, value in entry.items() if value.strip()} if is_table else entry
