"""The released format: `{"messages": [{"role", "content"}]}` or `{"text"}`, audio codes written as `<|audio_N|>` in the strings.

`read_released` reads JSONL, JSON and Parquet in bounded memory; `released_sample` makes a sample of a record, the codes as
ids without the detour through the text tokenizer.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ttt_dist.data.document import check_document
from ttt_dist.data.shards import to_document
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import numbered_lines
from ttt_dist.manifest.text_files import reading, suffix_of
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.template_form import ASSISTANT, CHAT_ROLES
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.util.errors import UserError

Record = dict[str, Any]

COLUMNS = ("messages", "text")
CHUNK = 1 << 20  # characters of a JSON file that are read at a time
LONGEST_RECORD = 64 << 20  # characters; a file that is no JSON is not read to its end to find that out
_SPACE = re.compile("[ \t\r\n]*")
ROWS = 256  # rows of a Parquet file that are in memory at a time


def read_released(path: Path, problems: Problems) -> Iterator[tuple[str, Record]]:
    """(`file:line` or `file:row N`, record) of a .jsonl, .json or .parquet file.

    Bad lines of JSONL and records that are no objects are reported; raises UserError on a file that cannot be read on.
    """
    readers = {".jsonl": _read_lines, ".json": _read_json, ".parquet": _read_parquet}
    kind = suffix_of(path)
    if kind not in readers:
        raise UserError(f"{path}: unknown kind of file; give .jsonl, .json or .parquet")
    for place, record in readers[kind](path, problems):
        if isinstance(record, dict):
            yield place, record
        else:
            problems.report(f"{place}: is {type(record).__name__}, not an object; write objects with messages or text")


def _read_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    for place, line in numbered_lines(path, problems):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.report(f"{place}: is not JSON ({error}); write one JSON object per line")
        else:
            yield place, record


def _read_json(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """One array of records, or records one after the other."""
    try:
        with reading(path) as raw:
            text = _JsonText(path, io.TextIOWrapper(raw, encoding="utf-8-sig"))
            is_array = text.take("[")
            at_end = text.take("]") if is_array else text.at_end()
            while not at_end:
                yield text.place(), text.value()
                at_end = text.take_end() if is_array else text.at_end()
            if not text.at_end():
                raise UserError(f"{text.place()}: more follows the array; write one array, or objects alone")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); convert the file") from error


class _JsonText:
    """A JSON file as a moving window, with the number of the line that it begins in."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.window, self.start, self.line = "", 0, 1
        self.decode = json.JSONDecoder().raw_decode

    def place(self) -> str:
        """Where the next thing stands."""
        self.at_end()
        return f"{self.path}:{self.line}"

    def at_end(self) -> bool:
        """Skip white space; whether nothing is left."""
        while True:
            end = _SPACE.match(self.window, self.start).end()  # type: ignore[union-attr]
            self._advance(end)
            if end < len(self.window):
                return False
            if not self._more():
                return True

    def take(self, mark: str) -> bool:
        """Step over `mark` where it comes next."""
        found = not self.at_end() and self.window[self.start] == mark
        if found:
            self._advance(self.start + 1)
        return found

    def take_end(self) -> bool:
        """Step over what follows an item of an array: False after a comma, True after the array's end."""
        if self.take(","):
            return False
        if not self.take("]"):
            raise UserError(f"{self.place()}: a comma or `]` is missing, the rest cannot be read; mend the file")
        return True

    def value(self) -> Any:
        """The next value. The window grows, twice as long each time, until it holds it and what follows it."""
        while True:
            try:
                value, end = self.decode(self.window, self.start)
                if end < len(self.window) or not self._more():
                    self._advance(end)
                    return value
            except (ValueError, RecursionError) as error:
                too_long = len(self.window) - self.start > LONGEST_RECORD
                if too_long or not self._more():
                    reason = f"longer than {LONGEST_RECORD:,} characters" if too_long else error
                    raise UserError(
                        f"{self.place()}: is no JSON record ({reason}), the rest cannot be read; mend the file"
                    ) from None

    def _advance(self, end: int) -> None:
        self.line += self.window.count("\n", self.start, end)
        self.start = end

    def _more(self) -> bool:
        """Read on; what lies behind is dropped. False at the end of the file."""
        left = self.window[self.start :]
        read = self.file.read(max(CHUNK, len(left)))
        self.window, self.start = left + read, 0
        return bool(read)


def _read_parquet(path: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            if not columns:
                raise UserError(f"{path}: has no column messages or text; rename the one that holds the samples")
            row = 0
            for batch in file.iter_batches(ROWS, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield f"{path}:row {row}", {name: value for name, value in values.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: is no readable Parquet file ({error}); write or copy it again") from error


def released_sample(template: ChatTemplate, record: Mapping[str, Any]) -> Sample:
    """A record as a sample: of messages the turns of the assistant are targets, of a text all tokens.

    Raises UserError that names what is wrong with the record.
    """
    messages = _messages(record.get("messages"))
    if messages:
        sample = template.chat(messages)
    elif isinstance(record.get("text"), str) and record["text"].strip():
        sample = template.document(record["text"])
    else:
        raise UserError("has neither 'messages' nor 'text'; add one, or remove the record")
    problem = next(check_document(to_document([sample]), template.layout, None), None)
    if problem:
        raise UserError(f"{problem}; correct or remove the record")
    return sample


def _messages(messages: object) -> list[dict[str, str]]:
    """Checked messages; Parquet files of the release may hold them as a JSON string."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise UserError(f"'messages' is a string that is not JSON ({error}); write a list of messages") from None
    if not isinstance(messages, list | None):
        raise UserError(f"'messages' is {type(messages).__name__}; write a list of objects with role and content")
    for number, message in enumerate(messages or [], start=1):
        if not isinstance(message, dict):
            raise UserError(f"message {number} is {type(message).__name__}; write an object with role and content")
        if message.get("role") not in CHAT_ROLES:
            raise UserError(f"message {number}: unknown role {message.get('role')!r}; use {', '.join(CHAT_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UserError(f"message {number}: content is {type(message.get('content')).__name__}; write a string")
    if messages and not any(message["role"] == ASSISTANT for message in messages):
        raise UserError("has no message of the assistant, so there is nothing to learn; add it, or remove the record")
    return messages or []
