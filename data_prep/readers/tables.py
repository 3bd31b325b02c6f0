"""Tables of one's own: TSV, CSV, JSON lines or lists, Parquet and Arrow, with the columns that hold the fields of an entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.arrow_rows import read_arrow_rows
from data_prep.readers.columns import choose_columns, entry_of, require_column
from data_prep.readers.common import add_duration, is_there, require_file
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.records import read_records

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
        yield from read_text_rows(path, path.stem, options, problems, {})


def read_text_rows(
    path: Path, prefix: str, options: ReaderOptions, problems: Problems, fields: Mapping[str, Any]
) -> Iterator[Entry]:
    """The entries of a TSV, CSV or JSON; `fields` are added where no column holds them. Ids are those of a column, or
    PREFIX-LINE."""
    columns: dict[str, str] = {}
    for place, row in read_records(path, problems):
        if not isinstance(row, dict):
            problems.report(f"{place}: is {type(row).__name__}, not an object; write one object per utterance")
            continue
        columns = columns or choose_columns(row, options.columns, path)
        column = require_column(columns, "audio", path)
        entry = entry_of(row, columns, place, options, problems)
        if entry is None:
            continue
        audio = row.get(column)
        if not isinstance(audio, str) or not audio:
            problems.report(f"{place}: column '{column}' names no recording; complete or remove the line")
            continue
        number = place.rpartition(":")[2]
        entry = {"id": f"{prefix}-{number}", "audio": str(path.parent / audio), **fields, **entry}
        if options.wants(str(entry.get("split", "")), problems, place) and _has_length(entry, problems, place):
            yield entry


def _has_length(entry: Entry, problems: Problems, place: str) -> bool:
    """Whether the recording is there; its length is noted, from its header unless the table states it."""
    if "duration" in entry and "offset" not in entry:
        return is_there(Path(entry["audio"]), problems, place)
    return add_duration(entry, problems, place)
