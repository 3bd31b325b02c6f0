"""Tables of one's own: TSV, CSV, JSON lines or lists, Parquet and Arrow, with the columns that hold the fields of an entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.arrow_rows import read_arrow_rows
from data_prep.readers.columns import choose_columns, entry_of, require_column
from data_prep.readers.common import add_duration, is_there, require_file
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.records import TABLES, read_records
from ttt_dist.manifest.text_files import stem_of, suffix_of
from ttt_dist.util.errors import UserError

ARROW_SUFFIXES = (".parquet", ".arrow")


def read_table(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A file with a row per utterance: .tsv, .csv, .parquet, .arrow, or JSON under any name (NeMo's manifests too).

    `--columns audio=path,text=sentence,...` says which column holds a field (columns.py has the names that need no
    saying); fields of any name may be added, other columns are left out. Paths are relative to the file, or absolute.
    In Parquet and Arrow the audio may be in the table itself: its bytes, or a struct of `bytes` and `path`.
    """
    path = require_file(options.source)
    if path.suffix.lower() in ARROW_SUFFIXES:
        yield from read_arrow_rows(path, path.stem, options, problems, {})
    else:
        yield from read_text_rows(path, stem_of(path), options, problems, lambda _: {})


def read_text_rows(
    path: Path, prefix: str, options: ReaderOptions, problems: Problems, fields: Callable[[Path], Mapping[str, Any]]
) -> Iterator[Entry]:
    """The entries of a TSV, CSV or JSON; the `fields` of a recording are added where no column holds them. Ids are those of
    a column, or PREFIX-LINE."""
    chosen = _Columns(path, options.columns)
    last, repeats = "", 0
    for place, row in read_records(path, problems):
        if not isinstance(row, dict):
            problems.report(f"{place}: is {type(row).__name__}, not an object; write one object per utterance")
            continue
        try:
            columns = chosen.of(row)
        except UserError as error:
            if suffix_of(path) in TABLES:
                raise
            problems.report(f"{place}: {error}")
            continue
        entry = entry_of(row, columns, place, options, problems)
        if entry is None:
            continue
        audio = row.get(columns["audio"])
        if not isinstance(audio, str) or not audio:
            problems.report(f"{place}: column '{columns['audio']}' names no recording; complete or remove the line")
            continue
        repeats = repeats + 1 if place == last else 0
        last, number = place, place.rpartition(":")[2] + (f"-{repeats}" if repeats else "")
        recording = (options.audio_root or path.parent) / audio
        entry = {"id": f"{prefix}-{number}", "audio": str(recording), **fields(recording), **entry}
        if options.wants(str(entry.get("split", "")), problems, place) and _has_length(entry, problems, place):
            yield entry
    chosen.require()


class _Columns:
    """The columns of rows, of which JSON may have another set in every line: each row goes by its own, and those of `given`."""

    def __init__(self, path: Path, given: Mapping[str, str]) -> None:
        self._path, self._given = path, given
        self._seen: dict[str, None] = {}
        self._known: dict[tuple[str, ...], dict[str, str]] = {}
        self._error: UserError | None = None

    def of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The column of each field. Raises UserError where none holds the recording, or a given one was in no row yet."""
        names = tuple(row)
        if names not in self._known:
            self._seen |= dict.fromkeys(names)
            available = [*names, *(column for column in self._given.values() if column in self._seen)]
            try:
                columns = choose_columns(dict.fromkeys(available), self._given, self._path)
                require_column(columns, "audio", self._path)
            except UserError as error:
                self._error = self._error or error
                raise
            self._known[names] = columns
        return self._known[names]

    def require(self) -> None:
        """Raise what was wrong with the first row where no row was better."""
        if self._error and not self._known:
            raise self._error


def _has_length(entry: Entry, problems: Problems, place: str) -> bool:
    """Whether the recording is there; its length is noted, from its header unless the table states it."""
    if "duration" in entry and "offset" not in entry:
        return is_there(Path(entry["audio"]), problems, place)
    return add_duration(entry, problems, place)
