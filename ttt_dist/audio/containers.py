"""Recordings inside container files: members of tar archives, rows of Parquet and Arrow files.

Nothing is unpacked. A member of a tar is `{"offset": BYTES, "size": BYTES}` and is read by seeking; a row of a table is
`{"row": N, "column": "audio"}`. A column holds the file's bytes, a path, what Hugging Face `datasets` writes for an Audio
column: a struct of `bytes` and `path`, of which the first may be null; or samples: a struct of `array` and `sampling_rate`.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ttt_dist.audio.sources import require_regular
from ttt_dist.util.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow import NativeFile, Schema

OPEN_TABLES = 4  # Parquet and Arrow files held open, each Parquet file with its last row group: bounds the memory
MARK = b"\xff\xff\xff\xff"
BATCH_ROWS = 1024  # of text columns, converted at once
DAMAGE = (OSError, ValueError, LookupError, NotImplementedError, TypeError, MemoryError)
"""What pyarrow raises at a damaged file: most of its own errors are ValueErrors."""

Member = Mapping[str, Any]


def describe(path: str | Path, member: Member) -> str:
    """A clip's name for messages: the container and the place inside."""
    if "row" in member:
        return f"{path}: row {member['row']} of column '{member['column']}'"
    return f"{path}: member at byte {member['offset']}"


def member_bytes(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on; nothing else of the file is read. Raises UserError where it ends before."""
    place = describe(path, {"offset": offset})
    try:
        require_regular(path, str(path))
        with open(path, "rb") as file:
            available = file.seek(0, 2)
            if offset + size > available:
                raise UserError(
                    f"{place}: {size:,} bytes are asked for, but the file ends at {available:,}; list the corpus again"
                )
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path or its permissions") from error


class Table(Protocol):
    """A file of rows: `value` is a bytes object, a path, or a struct of both."""

    rows: int
    schema: Schema

    def value(self, row: int, column: str) -> Any:
        """One cell. Raises KeyError where there is no such column."""

    def read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows in order, of these columns only."""


class ParquetTable:
    """Keeps one row group of one column: rows in order are read once, and memory holds no more than that."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        meta = self._file.metadata
        self._starts = [0]
        for group in range(meta.num_row_groups):
            self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)
        self.rows = self._starts[-1]  # those that can be read
        self._stated = meta.num_rows
        self.schema = self._file.schema_arrow
        self._kept: tuple[int, str] | None = None
        self._cells: Any = None

    def value(self, row: int, column: str) -> Any:
        """One cell of the row group that is kept; another group takes its place."""
        group = bisect_right(self._starts, row) - 1
        if self._kept != (group, column):
            if column not in self.schema.names:
                raise KeyError(column)
            self._cells = None  # before the next is read: two groups at once would double the memory
            self._cells = self._file.read_row_group(group, columns=[column]).column(column)
            self._kept = (group, column)
        return self._cells[row - self._starts[group]].as_py()

    def read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows in order, of these columns only, a batch in memory."""
        if not columns:  # pyarrow loses the number of rows where no column is asked for
            yield from ({} for _ in range(self.rows))
        else:
            for batch in self._file.iter_batches(BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
        if self._stated != self.rows:
            raise ValueError(f"it states {self._stated:,} rows and has {self.rows:,}")


class ArrowTable:
    """An Arrow file or stream (what `save_to_disk` writes), memory-mapped: rows are read from the disk when asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        source = pa.memory_map(str(path))
        is_file = source.read(8).startswith(b"ARROW1")
        source.seek(8 if is_file else 0)  # a file is a stream between its name and a list of its pieces
        self._table = pa.ipc.open_stream(source).read_all()
        self._unread = _unread(source, is_file)
        self._table.validate(full=True)  # pyarrow follows offsets unchecked: damaged ones end the process
        self.rows = self._table.num_rows
        self.schema = self._table.schema

    def value(self, row: int, column: str) -> Any:
        """One cell."""
        if column not in self._table.column_names:
            raise KeyError(column)
        return self._table.column(column)[row].as_py()

    def read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """All rows in order, of these columns only, a batch in memory. Raises ValueError behind the last where there were more."""
        if not columns:
            yield from ({} for _ in range(self.rows))
        else:
            for batch in self._table.select(columns).to_batches(BATCH_ROWS):
                yield from batch.to_pylist()
        if self._unread:
            raise ValueError(self._unread)


def _unread(source: NativeFile, is_file: bool) -> str:
    """What shows that a stream that was read up to here is not whole; "" where nothing does.

    A bit of a length or of a kind that flips looks like its end, and a file that was cut off may end between two pieces.
    """
    end, size = source.tell(), source.size()
    source.seek(8 if is_file else 0)
    before = MARK if source.read(4) == MARK else b""  # of every length since 2019
    source.seek(max(end - 4 - len(before), 0))
    if source.read(4 + len(before)) != before + bytes(4):
        return "it ends without the mark of an end"
    source.seek(size - 10 if is_file else end)
    footer = int.from_bytes(source.read(4), "little") + 10 if is_file else 0
    left = size - footer - end
    return f"{left:,} bytes lie behind its end" if left else ""


def open_table(path: Path) -> Table:
    """The Parquet or Arrow file, told apart by its first bytes. Raises UserError where it is neither."""
    try:
        require_regular(path, str(path))
        with open(path, "rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        table = ParquetTable(path) if is_parquet else ArrowTable(path)
        _read_names(table.schema)
        return table
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read as Parquet or Arrow ({first_line(error)}); correct the path"
        ) from error
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: is no Parquet or Arrow file ({first_line(error)}); fetch it again") from error


def _read_names(fields: Iterable[Any]) -> None:
    """Read the name of every column and of what is in it: pyarrow finds out here that one is no text."""
    for field in fields:
        _ = field.name
        _read_names(field.type.field(number) for number in range(field.type.num_fields))


def wav_of(array: list[Any], rate: Any, name: str) -> bytes:
    """Samples [T], or [channels, T], as the bytes of a WAV: floats as they are, whole numbers as 16 bits.

    Raises UserError, which calls them `name`, where they are no such samples.
    """
    import io

    import numpy as np
    import soundfile

    file = io.BytesIO()
    try:
        samples = np.array(array)
        is_whole = samples.dtype.kind == "i" and samples.min() >= -(2**15) and samples.max() < 2**15
        samples = samples.astype(np.int16 if is_whole else np.float32)
        channels = samples.T if samples.ndim == 2 and len(samples) < samples.shape[1] else samples
        soundfile.write(file, channels, int(rate), "PCM_16" if is_whole else "FLOAT", format="WAV")
    except (ValueError, TypeError, OverflowError, IndexError, soundfile.SoundFileError) as error:
        raise UserError(f"{name}: its array holds no samples ({first_line(error)}); remove the row") from error
    return file.getvalue()


class Containers:
    """Fetches recordings out of container files, keeping the tables used last open; one thread at a time reads those."""

    def __init__(self, open_tables: int = OPEN_TABLES) -> None:
        self._limit = open_tables
        self._tables: OrderedDict[Path, Table] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, path: Path, member: Member) -> bytes | Path:
        """The audio file's bytes, or the path of the audio file that the row names.

        A relative path starts from the container's folder, or from the one above (a data set's `data/`), where the
        file is. Whether it may be read is for the caller to decide. Raises UserError naming file and member.
        """
        if "row" not in member:
            return member_bytes(path, member["offset"], member["size"])
        with self._lock:
            cell = self._cell(path, member)
        return self._audio_of(cell, path, member)

    def named(self, path: Path, member: Member) -> tuple[bytes | Path, str]:
        """What `fetch` gives, and its name for messages: file, member, and the path that the row names."""
        found, name = self.fetch(path, member), describe(path, member)
        return found, name if isinstance(found, bytes) else f"{name}: {found}"

    def _cell(self, path: Path, member: Member) -> Any:
        table = self._table(path)
        place = describe(path, member)
        if member["row"] >= table.rows:
            raise UserError(f"{place}: the file has {table.rows:,} rows; list the corpus again")
        try:
            return table.value(member["row"], member["column"])
        except KeyError as error:
            raise UserError(f"{place}: the file has no such column; list the corpus again") from error
        except DAMAGE as error:
            raise UserError(f"{place}: is damaged ({first_line(error)}); fetch the file again") from error

    def _table(self, path: Path) -> Table:
        if path not in self._tables:
            self._tables[path] = open_table(path)
            if len(self._tables) > self._limit:
                self._tables.popitem(last=False)
        self._tables.move_to_end(path)
        return self._tables[path]

    def _audio_of(self, cell: Any, path: Path, member: Member) -> bytes | Path:
        data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, cell)
        if isinstance(data, bytes) and data:
            return data
        if isinstance(cell, dict) and cell.get("array") and cell.get("sampling_rate"):
            return wav_of(cell["array"], cell["sampling_rate"], describe(path, member))
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{describe(path, member)}: holds neither audio nor the path of an audio file; remove the row"
            )
        nearby = [path.parent / name, path.parent.parent / name]
        return next((candidate for candidate in nearby if os.path.isfile(candidate)), nearby[0])
