"""Data files of any usual kind as records: CSV, TSV, JSON lines, or a JSON list, compressed or not.

Names that end in .csv, .tsv and .jsonl are believed. In others the first character decides, as JSON lines come as .json too
(NeMo), and the rest is taken for TSV.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt_dist.manifest.delimited import delimiter_of, read_rows
from ttt_dist.manifest.entry import decode_line, parse_object
from ttt_dist.manifest.json_stream import stream_array
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import first_letter, raw_lines, reading, suffix_of
from ttt_dist.util.errors import UserError

LIST_KEYS = ("Data", "data", "questions")  # where a benchmark's JSON object keeps its list
TABLES = (".csv", ".tsv")
LONG_LINE = 2**24  # bytes: longer is rather a whole file in one line than a record


def read_records(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(`file:line`, record) of every row, line or item that can be read; items of a JSON list may be anything.

    Raises UserError where the file cannot be read.
    """
    kind = suffix_of(path)
    first = "" if kind in TABLES else first_letter(path)
    if kind == ".jsonl" or (first == "{" and _is_lines(path)):
        yield from _json_lines(path, problems)
    elif kind == ".json" or first in ("{", "["):
        yield from stream_array(path, _list_key(path) if first == "{" else None, problems)
    else:
        yield from read_rows(path, problems, delimiter_of(path))


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    for place, raw in raw_lines(path):
        try:
            line = decode_line(raw, place)
            if line:
                yield place, parse_object(line, place)
        except UserError as error:
            problems.report(error)


def _is_lines(path: Path) -> bool:
    """Whether the first line that is not blank is an object by itself, and keeps no list of records."""
    with reading(path) as file:
        line = next(
            (
                line
                for raw in iter(lambda: file.readline(LONG_LINE), b"")
                if (line := raw.strip(b"\xef\xbb\xbf \t\r\n"))
            ),
            b"",
        )
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not any(isinstance(found.get(key), list) for key in LIST_KEYS)


def _list_key(path: Path) -> str | None:
    """Under which key a JSON file keeps its list; None where no such key is known."""
    with reading(path) as file:
        text = file.read().decode("utf-8", "replace")
    return next((key for key in LIST_KEYS if re.search(rf'"{key}"\s*:\s*\[', text)), None)
