"""Tables as text: CSV and TSV, row by row, with the place of each row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ttt_dist.manifest.entry import decode_line
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import raw_lines
from ttt_dist.util.errors import UserError

Row = dict[str, str]


class _Lines:
    """The decoded lines of a file, and the place of the last one given; lines that are not UTF-8, and a
    file that cannot be read, are reported."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.place = str(path)
        self._lines = raw_lines(path)
        self._problems = problems

    def __iter__(self) -> Iterator[str]:
        for place, raw in self._readable():
            try:
                decode_line(raw, place)
            except UserError as error:
                self._problems.report(error, "not UTF-8")
                continue
            self.place = place
            yield raw.decode("utf-8").removeprefix("\ufeff")  # not stripped: an empty column is white space in a TSV

    def _readable(self) -> Iterator[tuple[str, bytes]]:
        try:
            yield from self._lines
        except UserError as error:
            self._problems.report(error, "no access")


def read_rows(path: Path, problems: Problems, delimiter: str, quoted: bool = True) -> Iterator[tuple[str, Row]]:
    """(`file:line`, {column: value}) of every row below the header; the line is the row's last.

    `quoted` says whether `"` encloses values; where not, it is a letter like any other. Rows that have another number
    of columns than the header are reported, and so is a file that cannot be read.
    """
    lines = _Lines(path, problems)
    reader = csv.reader(
        iter(lines), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
    )
    header: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.report(f"{lines.place}: cannot be read as a row ({error}); correct the line")
            continue
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
        elif len(row) != len(header):
            problems.report(f"{lines.place}: has {len(row)} columns, the header {len(header)}; correct the line")
        else:
            yield lines.place, dict(zip(header, row, strict=True))


def delimiter_of(path: Path) -> str:
    """A comma for .csv, else a tab."""
    return "," if path.suffix.lower() == ".csv" else "\t"
