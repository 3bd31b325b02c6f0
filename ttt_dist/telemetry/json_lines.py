"""Files of one JSON object a line, as a run appends them: metrics.jsonl and events.jsonl.

A disk that fills up or a process that dies may cut a line short. Neither costs the lines before it or after it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from ttt_dist.util.console import warn

Record = dict[str, Any]
TOLD = 3  # damaged lines named one by one


class Line(NamedTuple):
    """A line of a file, and the object in it; None where it is damaged."""

    number: int
    text: str
    record: Record | None


def append_line(path: Path, text: str) -> None:
    """Write one line at once, whole or not at all. Raises OSError.

    The file is opened for each line: lines are rare, and a process that is about to be killed has nothing to close.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.tell()
        is_open_line = size > 0 and _last_byte(file) != b"\n"  # left by a crash; it must not swallow this one
        data = memoryview(("\n" * is_open_line + text + "\n").encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def read_lines(path: Path, is_sound: Callable[[Record], bool]) -> Iterator[Line]:
    """The lines of a file that are not blank; none where there is no file. Raises OSError."""
    if not path.is_file():
        return
    # Split where lines were ended, not at every character that Unicode calls a line's end.
    for number, text in enumerate(path.read_bytes().decode("utf8", "replace").split("\n"), start=1):
        if text.strip():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                record = None
            yield Line(number, text, record if isinstance(record, dict) and is_sound(record) else None)


def warn_of_damage(path: Path, lines: list[Line]) -> None:
    """Name the damaged ones of `lines`, which are left out."""
    damaged = [line.number for line in lines if line.record is None]
    if damaged:
        more = f" and {len(damaged) - TOLD:,} more" if len(damaged) > TOLD else ""
        warn(f"{path}: line(s) {', '.join(map(str, damaged[:TOLD]))}{more} are damaged, and are left out")


def is_metrics(record: Record) -> bool:
    """Whether an object is a record of figures: a step, and numbers or null by name."""
    return is_step(record.get("step")) and all(value is None or _is_number(value) for value in record.values())


def is_step(value: Any) -> bool:
    """Whether a value counts updates."""
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and (isinstance(value, float) or abs(value) < 2**63)


def read_metrics(path: Path) -> list[Record]:
    """The records of metrics.jsonl in order, one that was done again in place of the first; warns of damaged lines.

    A last line that is being written is left out. What is not finite is None. Raises OSError.
    """
    lines = list(read_lines(path, is_metrics))
    is_being_written = bool(lines) and lines[-1].record is None and _last_byte_of(path) != b"\n"
    warn_of_damage(path, lines[:-1] if is_being_written else lines)
    records: list[Record] = []
    for record in (line.record for line in lines if line.record is not None):
        if _is_again(records, record):
            while records and records[-1]["step"] >= record["step"]:
                records.pop()
        records.append(
            {name: value if value is not None and math.isfinite(value) else None for name, value in record.items()}
        )
    return records


def _is_again(records: list[Record], record: Record) -> bool:
    """Whether `record` is of a step that was done before. A step has a record of its training and one of its evaluation."""
    step = record["step"]
    there = takewhile(lambda earlier: earlier["step"] >= step, reversed(records))
    return any(earlier["step"] > step or len(earlier.keys() & record.keys()) > 1 for earlier in there)


def _last_byte_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return _last_byte(file)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    return file.read(1)
