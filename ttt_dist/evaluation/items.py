"""The lines of a data file as items: a manifest (JSONL), a JSON list, or a table (CSV, TSV).

What is broken, or lacks what the task needs, becomes a message in its place: it is told and counted with the part of the
evaluation that it falls into.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_dist.manifest.delimited import delimiter_of, read_rows
from ttt_dist.manifest.entry import Entry, check_recordings, decode_line, is_unicode, parse_object
from ttt_dist.manifest.json_stream import stream_array
from ttt_dist.manifest.problems import Collected
from ttt_dist.manifest.reading import raw_lines
from ttt_dist.util.errors import UserError

Prepare = Callable[[Entry], Entry]
"""An entry as a task takes it, under the project's names of fields; UserError where it lacks something."""

LIST_KEYS = ("Data", "data", "questions")  # where a benchmark's JSON object keeps its list


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
        return {"id": self.id, "where": self.where, **known}


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
    """(`file:line`, entry) of every line that can be read."""
    if path.suffix in (".csv", ".tsv"):
        for place, row in read_rows(path, problems, delimiter_of(path)):
            yield place, {name: value for name, value in row.items() if value.strip()}
    elif path.suffix == ".json":
        yield from stream_array(path, _list_key(path), problems)
    else:
        yield from _json_lines(path, problems)


def _json_lines(path: Path, problems: Collected) -> Iterator[tuple[str, Any]]:
    for place, raw in raw_lines(path):
        try:
            line = decode_line(raw, place)
            if line:
                yield place, parse_object(line, place)
        except UserError as error:
            problems.report(error)


def _list_key(path: Path) -> str | None:
    """Under which key a JSON file keeps its list; None where it is one itself."""
    try:
        text = path.read_text(encoding="utf8", errors="replace").removeprefix("\ufeff").lstrip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path or its permissions") from error
    return next((key for key in LIST_KEYS if text[:1] == "{" and re.search(rf'"{key}"\s*:\s*\[', text)), None)
