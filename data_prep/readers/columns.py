"""Which column of a table holds which field of an entry, and a row as an entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.transcripts import no_speech, punctuated
from ttt_dist.manifest.entry import Entry, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

# Columns that hold a field where --columns does not name one, best first.
DEFAULTS = {
    "id": ("id", "utt_id", "utterance_id", "segment_id"),
    "audio": ("audio", "path", "audio_filepath", "audio_path", "file_name", "filename", "file", "wav"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text", "caption"),
    "label": ("label",),
    "lang": ("lang", "language", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "chapter": ("chapter", "chapter_id"),
    "split": ("split",),
    "offset": ("offset",),
    "duration": ("duration",),
}
SECONDS = ("offset", "duration")


def choose_columns(available: Iterable[str], given: Mapping[str, str], path: Path) -> dict[str, str]:
    """The column of each field: the given ones, and of the others the first of DEFAULTS that there is.

    Raises UserError where a given one is not there.
    """
    available = list(available)
    for name, column in given.items():
        if column not in available:
            raise UserError(f"--columns {name}={column}: {path} has no such column, but {', '.join(available)}")
    chosen = {
        name: next((column for column in candidates if column in available), None)
        for name, candidates in DEFAULTS.items()
    }
    return {name: column for name, column in chosen.items() if column} | dict(given)


def require_column(columns: Mapping[str, str], name: str, path: Path) -> str:
    """The column of a field. Raises UserError where none was found."""
    if name not in columns:
        raise UserError(f"{path}: no column is known to hold '{name}'; name it by --columns {name}=COLUMN")
    return columns[name]


def entry_of(
    row: Mapping[str, Any], columns: Mapping[str, str], place: str, options: ReaderOptions, problems: Problems
) -> Entry | None:
    """The fields of a row but `audio`; None, reported, where it has neither text nor label, or a number is none; None, skipped,
    where its text says that nothing is spoken."""
    entry: Entry = {}
    for name, column in columns.items():
        value = row.get(column)
        if name == "audio" or value is None or value == "":
            continue
        if name in SECONDS:
            value = seconds_of(value)
            if value is None:
                problems.report(f"{place}: column '{column}' is {row[column]!r}, not seconds; correct the line")
                return None
        if name in ("text", "label") and isinstance(value, list | dict):
            problems.report(f"{place}: column '{column}' is {type(value).__name__}, not text; correct the line")
            return None
        entry[name] = value if name in SECONDS else punctuated(str(value)) if name == "text" else str(value).strip()
    if options.lang:
        entry["lang"] = options.lang
    if tag := no_speech(entry.get("text", "")):
        problems.skip(f"no speech: {tag}", place)
        return None
    if not entry.get("text") and not entry.get("label"):
        message = f"{place}: has neither text nor label; complete or remove the line, or name the column by --columns"
        problems.report(message, "no text")
        return None
    return entry
