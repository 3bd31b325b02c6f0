"""Megatron's indexed data sets (`.bin` + `.idx`), written and read as Megatron-Core does, byte for byte, without its import.

That import takes seconds and warns of CUDA extras that a file format has no use for, and Megatron's builder loops over
sequences. The `.idx` is a header of 34 bytes and three or four arrays; tests compare both ways with Megatron's own.
"""

import mmap
import os
import struct
from array import array
from collections.abc import Collection, Iterable
from functools import cached_property
from hashlib import file_digest
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ttt_dist.util.atomic_files import open_new
from ttt_dist.util.errors import UserError

# Magic bytes, version, code of the tokens' type, sequences, entries of document_indices (one more than documents).
HEADER = struct.Struct("<9sQBQQ")
BORDERS, POINTER = struct.Struct("<qq"), struct.Struct("<q")
MAGIC, VERSION, INT32 = b"MMIDIDX\0\0", 1, 4
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


class IndexedBuilder:
    """Writes what Megatron's IndexedDatasetBuilder of int32 writes, byte for byte, without its loops over sequences.

    A document is a number of sequences; with `multimodal` each of them has a mode byte.
    """

    def __init__(self, bin_path: Path, multimodal: bool) -> None:
        self.data_file = open_new(bin_path)
        self._lengths, self._document_ends, self._modes = array("i"), array("q", [0]), array("b")
        self._multimodal = multimodal

    def add_item(self, ids: npt.ArrayLike, mode: int = 0) -> None:
        """Append a sequence [n] to the document that is open."""
        content = np.ascontiguousarray(ids, "<i4")
        self.data_file.write(content.data)
        self._lengths.append(content.size)
        self._modes.append(mode)

    def end_document(self) -> None:
        """Close the document that is open."""
        self._document_ends.append(len(self._lengths))

    def add_documents(
        self, content: bytes, lengths: Iterable[int], modes: Iterable[int], num_sequences: Iterable[int]
    ) -> None:
        """Append documents: their ids (int32), the lengths and modes of all their sequences, and how many each has."""
        self.data_file.write(content)
        ends = np.cumsum([len(self._lengths), *num_sequences])[1:]
        self._document_ends.extend(ends.tolist())
        self._lengths.extend(lengths)
        self._modes.extend(modes)

    def finalize(self, idx_path: Path) -> None:
        """Close the `.bin` and write the `.idx`: a header, then length, place and document of every sequence."""
        self.data_file.close()
        lengths = np.array(self._lengths, "<i4")
        places = np.cumsum(lengths, dtype="<i8") - lengths
        with open_new(idx_path) as file:
            file.write(HEADER.pack(MAGIC, VERSION, INT32, len(lengths), len(self._document_ends)))
            for values in (lengths, places * 4, np.array(self._document_ends, "<i8")):
                file.write(values.data)
            if self._multimodal:
                file.write(self._modes)


def new_builder(bin_path: Path, multimodal: bool) -> IndexedBuilder:
    """A builder that writes int32 to bin_path."""
    return IndexedBuilder(bin_path, multimodal)


class _File:
    """A file open for reading, closed with the object."""

    fd = -1

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, size: int, place: int) -> bytes:
        """`size` bytes from byte `place`. Raises ValueError where they lie outside."""
        if not 0 <= place <= place + size <= self.size:  # before as much memory is asked for
            raise ValueError(f"bytes {place} to {place + size} of {self.size}")
        content = os.pread(self.fd, size, place)
        while len(content) != size:  # a call gives 2 GiB at most, and some file systems less
            more = os.pread(self.fd, size - len(content), place + len(content))
            if not more:
                raise ValueError("the file has become shorter")
            content += more
        return content


class Index(NamedTuple):
    """The arrays of an .idx."""

    sequence_lengths: np.ndarray
    """int32 [n], in tokens."""
    sequence_pointers: np.ndarray
    """int64 [n], in bytes of the .bin."""
    document_indices: np.ndarray
    """int64 [documents + 1]: the first sequence of each, and the end."""
    sequence_modes: np.ndarray
    """int8 [n] where multimodal, else empty."""


TYPES, WIDTHS = (np.int32, np.int64, np.int64, np.int8), (4, 8, 8, 1)


class Indexed:
    """A .bin and its .idx: sequences of tokens of one `dtype`, and `num_documents` of several sequences each.

    Two handles, freed with the object; a third once `index` was asked for.
    """

    def __init__(self, prefix: str | Path, multimodal: bool, dtypes: Collection[str]) -> None:
        """Raises ValueError where the .idx is not what Megatron writes, or of a type that is none of `dtypes`."""
        self._idx = _File(f"{prefix}.idx")
        if self.idx_bytes < HEADER.size:
            raise ValueError(f"{self.idx_bytes} bytes, less than its header")
        magic, version, code, num_sequences, num_borders = HEADER.unpack(os.pread(self._idx.fd, HEADER.size, 0))
        if (magic, version) != (MAGIC, VERSION) or code not in DTYPES or not num_borders:
            raise ValueError("bad header")
        if DTYPES[code] not in dtypes:
            raise ValueError(f"holds {DTYPES[code]}, not {' or '.join(dtypes)}")
        self.dtype = np.dtype(DTYPES[code])
        self.num_documents = num_borders - 1
        self._counts = (num_sequences, num_sequences, num_borders, num_sequences if multimodal else 0)
        *self._places, needed = accumulate(map(mul, WIDTHS, self._counts), initial=HEADER.size)
        if self.idx_bytes < needed:
            raise ValueError(f"{self.idx_bytes} bytes, and its header asks for {needed}")
        self._bin = _File(f"{prefix}.bin")

    @cached_property
    def index(self) -> Index:
        """All of the .idx, mapped."""
        content = mmap.mmap(self._idx.fd, 0, access=mmap.ACCESS_READ)
        columns = zip(TYPES, self._counts, self._places, strict=True)
        return Index(*(np.frombuffer(content, *column) for column in columns))

    @property
    def bin_bytes(self) -> int:
        """Size of the .bin."""
        return self._bin.size

    @property
    def idx_bytes(self) -> int:
        """Size of the .idx."""
        return self._idx.size

    def idx_sha256(self) -> bytes:
        """SHA-256 of the .idx."""
        with open(self._idx.fd, "rb", buffering=0, closefd=False) as file:
            file.seek(0)
            return file_digest(file, "sha256").digest()

    def document(self, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Where a document of a multimodal set begins in the .bin, in bytes, and lengths and modes of its sequences. Raises
        ValueError where the .idx is broken.

        Read, not mapped: the page faults of a new map take longer than these four reads.
        """
        first, last = BORDERS.unpack(self._part(2, number, 2))
        [pointer] = POINTER.unpack(self._part(1, first, 1))
        lengths, modes = self._part(0, first, last - first), self._part(3, first, last - first)
        return pointer, np.frombuffer(lengths, np.int32), np.frombuffer(modes, np.int8)

    def _part(self, column: int, first: int, count: int) -> bytes:
        if not 0 <= first <= first + count <= self._counts[column]:
            raise ValueError(f"{count} entries from {first} of {self._counts[column]}")
        width = WIDTHS[column]
        return self._idx.read(width * count, self._places[column] + width * first)

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` tokens from byte `offset` of the .bin, of `dtype`, read-only. Raises ValueError where they lie outside."""
        return np.frombuffer(self._bin.read(self.dtype.itemsize * count, offset), self.dtype)


def open_indexed(
    prefix: str | Path, multimodal: bool, dtypes: Collection[str] = ("int32",), remedy: str = "write the shard again"
) -> Indexed:
    """The data set at prefix. Raises UserError where its files are missing or do not fit each other."""
    try:
        found = Indexed(prefix, multimodal, dtypes)
        if not found.bin_bytes:
            raise UserError(f"{prefix}.bin: is empty; {remedy}")
        return found
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; {remedy}") from None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); correct its permissions") from None
    except ValueError as error:
        if not os.stat(f"{prefix}.idx").st_size:
            raise UserError(f"{prefix}.idx: is empty; {remedy}") from None
        raise UserError(f"{prefix}.idx: not a readable Megatron index ({error}); {remedy}") from error
