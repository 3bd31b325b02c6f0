"""Rows of Parquet and Arrow files as entries: the audio stays where it is, `member` names its row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.readers import ReaderOptions
from data_prep.readers.columns import choose_columns, entry_of, require_column
from data_prep.readers.common import add_duration
from ttt_dist.audio.containers import DAMAGE, Containers, open_table
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow import Schema


def read_arrow_rows(
    path: Path, prefix: str, options: ReaderOptions, problems: Problems, fields: Mapping[str, Any]
) -> Iterator[Entry]:
    """The entries of a Parquet or Arrow file, read in batches; `fields` are added where no column holds them.

    Ids are PREFIX-ROW unless `--columns` names a column: what is called `id` is often that of a sentence, not of a
    recording. Lengths are those of a column `duration`, or come from the audio. A file that is damaged is reported.
    """
    try:
        table = open_table(path)
    except UserError as error:
        problems.report(error, "bad table")
        return
    given = {**audio_column(table.schema, options.columns, path), **options.columns}
    columns = choose_columns(table.schema.names, given, path)
    if "id" not in options.columns:
        columns.pop("id", None)
    member_column = require_column(columns, "audio", path)
    others = sorted({column for name, column in columns.items() if name != "audio"})
    labels = {column: names for column in others if (names := label_names(table.schema, column))}
    containers = Containers()
    for row, values in _rows(path, others, problems):
        place = f"{path}: row {row}"
        entry = entry_of(_named(values, labels), columns, place, options, problems)
        if entry is None:
            continue
        entry = {"id": f"{prefix}-{row}", "audio": str(path), **fields, **entry}
        entry["member"] = {"row": row, "column": member_column}
        if not options.wants(str(entry.get("split", "")), problems, place):
            continue
        if ("duration" in entry and "offset" not in entry) or add_duration(entry, problems, place, containers):
            yield entry


def _rows(path: Path, columns: list[str], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, values) of every row; what is damaged ends the file and is reported."""
    row = 0
    try:
        for values in open_table(path).read(columns):
            yield row, values
            row += 1
    except DAMAGE as error:
        problems.report(
            f"{path}: is damaged at row {row} or after it ({first_line(error)}); fetch it again", "bad table"
        )


def audio_column(schema: Schema, given: Mapping[str, str], path: Path) -> dict[str, str]:
    """`{"audio": COLUMN}` of the column that is declared as Audio, or else is a struct of bytes and path.

    Empty where there is none. Raises UserError where there are several and `given` does not choose.
    """
    if "audio" in given:
        return {}
    declared = [name for name, feature in _features(schema).items() if feature.get("_type") == "Audio"]
    found = declared or [field.name for field in schema if _is_struct_of_audio(field.type)]
    if len(found) > 1:
        raise UserError(f"{path}: columns {', '.join(found)} hold audio; choose by --columns audio=COLUMN")
    return {"audio": found[0]} if found else {}


def _is_struct_of_audio(kind: Any) -> bool:
    from pyarrow import types

    names = {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else set()
    return names >= {"bytes", "path"} or names >= {"array", "sampling_rate"}


def label_names(schema: Schema, column: str) -> list[str]:
    """What the numbers of a column of class labels stand for; empty where the file does not say."""
    names = _features(schema).get(column, {}).get("names")
    return [str(name) for name in names] if isinstance(names, list) else []


def _features(schema: Schema) -> dict[str, dict[str, Any]]:
    """The columns' features as Hugging Face `datasets` writes them into the schema."""
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(raw)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _named(values: dict[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """The row with the names of its class labels in place of their numbers; a number without a name is no label."""
    named = {}
    for column, names in labels.items():
        number = values.get(column)
        if isinstance(number, int):
            named[column] = names[number] if 0 <= number < len(names) else None
    return values | named
