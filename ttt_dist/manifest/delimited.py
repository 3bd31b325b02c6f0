"""Tables as text: CSV and TSV, row by row, with the place of each row.

In a TSV `"` is a letter, unless its header encloses every name in quotes. In a CSV it encloses values, and one that was
meant as a letter would swallow the rows up to the next: a value may have line ends of its own, but not many, and no rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ttt_dist.manifest.entry import decode
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import raw_lines, suffix_of
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError

Row = dict[str, str]
MAX_LINES = 16  # of one row of a CSV
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}


class _Lines:
    """The lines of a file for csv.reader, and those that the row being read has had so far."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.taken: list[tuple[str, str]] = []
        """(`file:line`, text) of each line since the last row."""
        self._lines = _decoded(path, problems)
        self._again: list[tuple[str, str]] = []  # lines to be read once more, last first

    def __iter__(self) -> Iterator[str]:
        taken = self.taken
        while len(taken) < MAX_LINES:
            line = self._again.pop() if self._again else next(self._lines, None)
            if line is None:
                return
            taken.append(line)
            yield line[1]
        raise csv.Error(f"the quote that opens here is not closed within {MAX_LINES} lines")

    def give_back(self) -> None:
        """Let all lines of the row but its first be read again."""
        self._again += self.taken[:0:-1]


def _decoded(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line; lines that are not UTF-8, and a file that cannot be read, are reported."""
    try:
        for place, raw in raw_lines(path):
            try:  # not stripped: an empty column is white space in a TSV
                yield place, decode(raw, place)
            except UserError as error:
                problems.report(error, "not UTF-8")
    except UserError as error:
        problems.report(error, "no access")


def read_rows(path: Path, problems: Problems, delimiter: str, csv_cells: bool = False) -> Iterator[tuple[str, Row]]:
    """(`file:line`, {column: value}) of every row below the header; the line is the row's last.

    With `csv_cells`, a value of a TSV that a CSV would have written ("a ""b"".") is read as in a CSV.
    Rows that have another number of columns than the header are reported, and so is a file that cannot be read. Raises UserError
    where the header is not one of such a table.
    """
    header: list[str] | None = None
    for place, row in _csv_rows(path, problems) if delimiter == "," else _tsv_rows(path, problems, csv_cells):
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
            _require_header(header, place, delimiter)
        elif len(row) != len(header):
            problems.report(f"{place}: has {len(row)} columns, the header {len(header)}; correct the line")
        else:
            yield place, dict(zip(header, row, strict=True))


def _require_header(header: list[str], place: str, delimiter: str) -> None:
    """Raise UserError where names stand twice, or values and lines are separated otherwise."""
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{place}: the header names {twice!r} twice; rename one of the columns")
    if any("\r" in name for name in header):
        raise UserError(f"{place}: lines end with CR alone; save the file with line ends of Unix or Windows")
    other = next((sign for sign in SEPARATORS if len(header) == 1 and sign in header[0]), None)
    if other is not None:
        raise UserError(
            f"{place}: has {SEPARATORS[other]} between values, where {SEPARATORS[delimiter]} belong; "
            + {"\t": "name it .tsv", ",": "name it .csv"}.get(other, "save it with commas, as .csv")
        )


def _tsv_rows(path: Path, problems: Problems, csv_cells: bool) -> Iterator[tuple[str, list[str]]]:
    encloses: bool | None = None
    told = False
    for place, line in _decoded(path, problems):
        row = line.rstrip("\r\n").split("\t")
        if encloses is None and any(row):
            encloses = all(map(_is_quoted, row))
        if csv_cells and not encloses:
            row = [_unquoted(cell) if _is_as_csv_writes(cell) else cell for cell in row]
        elif not (encloses or told) and '""' in line and any(map(_is_as_csv_writes, row)):
            warn(
                f'{place}: "" inside quotes is how a CSV writes a letter ", and stays as it is in a TSV; if it is CSV, say .csv'
            )
            told = True
        yield place, [_unquoted(cell) for cell in row] if encloses else row


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _is_as_csv_writes(cell: str) -> bool:
    """Whether a CSV would have written this, of a value with a letter " in it."""
    return _is_quoted(cell) and '""' in cell[1:-1] and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _is_quoted(cell) else cell


def _csv_rows(path: Path, problems: Problems) -> Iterator[tuple[str, list[str]]]:
    lines = _Lines(path, problems)
    reader = csv.reader(lines, strict=True)
    columns = 0
    while True:
        try:
            row = next(reader)
            if len(lines.taken) > 1:
                _require_one_row([text for _, text in lines.taken], columns)
        except StopIteration:
            return
        except csv.Error as error:
            place = lines.taken[0][0]
            problems.report(f'{place}: cannot be read as a row ({error}); correct the line (a letter " is written "")')
            lines.give_back()
            reader = csv.reader(lines, strict=True)
        else:
            yield lines.taken[-1][0], row
            columns = columns or len(row)
        lines.taken.clear()


def _require_one_row(lines: list[str], columns: int) -> None:
    """Raise csv.Error where several lines, read as one row, are a whole row each: a quote that nobody closes ends at the
    next one like it."""
    if columns > 1 and all(len(next(csv.reader([line]), [])) == columns for line in lines):
        raise csv.Error(f"the quote that opens here would take {len(lines)} rows for one")


def delimiter_of(path: Path) -> str:
    """A comma for .csv, compressed or not, else a tab."""
    return "," if suffix_of(path) == ".csv" else "\t"
