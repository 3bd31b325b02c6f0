"""JSON that may be anything: parsed or refused, and never more of it than a file of its kind can have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttt_dist.util.errors import UserError

MAX_BYTES = 2**26  # of a JSON that says what other files are: Python needs some ten times that to hold it


def parse(content: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for whatever is wrong with it, a depth that Python does not read included."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("lists and objects stand in each other too deep") from error


def read_bytes(path: Path, remedy: str) -> bytes:
    """A file's bytes. Raises UserError where it cannot be read, or is far larger than its kind; FileNotFoundError where it is not
    there."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct its permissions, or {remedy}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: has more than {MAX_BYTES:,} bytes, which no file of its kind has; {remedy}")
    return content


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object that a file holds. Raises UserError where it holds anything else; FileNotFoundError where there is no file."""
    try:
        found = parse(read_bytes(path, remedy))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is {type(found).__name__}, not a JSON object; {remedy}")
    return found
