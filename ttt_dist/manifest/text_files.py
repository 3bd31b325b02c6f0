"""Text files as bytes and as lines: opened whether or not they are compressed, which their first bytes say."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from ttt_dist.util.errors import UserError

COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""What opens a file that begins with these bytes."""
OTHERS = {
    b"PK\x03\x04": "a zip file or a workbook of a spreadsheet; save it as .csv or .tsv in UTF-8",
    b"\xd0\xcf\x11\xe0": "a workbook of a spreadsheet; save it as .csv or .tsv in UTF-8",
    b"\x28\xb5\x2f\xfd": "compressed by zstd, which is not read; decompress it (zstd -d)",
    b"PAR1": "Parquet; name it .parquet",
    b"ARROW1": "Arrow; name it .arrow",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}
"""What a file is that begins with these bytes and is no text here."""
SUFFIXES = (".gz", ".bz2", ".xz")
BLOCK = 2**16  # bytes of lines read at once
MAX_LINE = 2**27  # bytes; more without an end of line is no text


def suffix_of(path: Path) -> str:
    """`.jsonl` of words.jsonl and of words.JSONL.gz."""
    return _unpacked(path).suffix.lower()


def stem_of(path: Path) -> str:
    """`words` of words.jsonl and of words.jsonl.gz."""
    return _unpacked(path).stem


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """The file's text as bytes. Raises UserError, also in the block, where it cannot be read or decompressed to its end."""
    try:
        with open(path, "rb") as file:
            start = file.peek(6)
            known = next((opened for magic, opened in COMPRESSED.items() if start.startswith(magic)), None)
            if other := next((what for magic, what in OTHERS.items() if start.startswith(magic)), None):
                raise UserError(f"{path}: is {other}")
            if known is None:
                yield file
            else:
                with known(file, "rb") as text:
                    yield BufferedReader(text)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is damaged or cut off ({error}); fetch it again") from error
    except OSError as error:
        reason = error.strerror or str(error)  # bz2 has no class of errors of its own
        raise UserError(f"{path}: cannot be read ({reason}); correct the path or its permissions") from error


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, bytes) of every line. Raises UserError where the file cannot be read."""
    name = f"{path}:"  # a path takes long to become text
    with reading(path) as file:
        for number, raw in enumerate(_lines(file), start=1):
            if len(raw) >= MAX_LINE:
                raise UserError(f"{path}:{number}: {MAX_LINE:,} bytes without an end of line; this is no text file")
            yield f"{name}{number}", raw


def _lines(file: BufferedReader) -> Iterator[bytes]:
    """Lines, of which no more than MAX_LINE bytes and a block are held: of a block of whole lines at a time, which is
    faster than `readline` with a limit."""
    while block := file.read1(BLOCK):
        yield from BytesIO(block if block.endswith(b"\n") else block + file.readline(MAX_LINE))


def first_letter(path: Path) -> str:
    """The first character that is no white space, such as the { of JSON; empty where there is none."""
    with reading(path) as file:
        return file.read(4096).decode("utf-8", "replace").removeprefix("\ufeff").lstrip()[:1]
