"""Megatron's indexed data sets (`.bin` + `.idx`), written and read as Megatron-Core does, byte for byte, without its import.

That import takes seconds and warns of CUDA extras that a file format has no use for, and Megatron's builder loops over
sequences. The `.idx` is a header of 34 bytes and three or four arrays; tests compare both ways with Megatron's own.
"""

import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ttt_dist.util.atomic_files import open_new
from ttt_dist.util.errors import UserError

# Magic bytes, version, code of the tokens' type, sequences, entries of document_indices (one more than documents).
HEADER = struct.Struct("<9sQBQQ")
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


class Indexed:
    """A .bin and its .idx: sequences of tokens of one `dtype`, and documents of several sequences each. Two handles, freed with
    the object.

    `sequence_lengths` int32 [n] in tokens, `sequence_pointers` int64 [n] in bytes, `document_indices` int64 [documents + 1]
    (first sequence of each, and the end), `sequence_modes` int8 [n] where `multimodal`, else empty; all of them mapped.
    """

    def __init__(self, prefix: Path, multimodal: bool, dtypes: Collection[str]) -> None:
        """Raises ValueError where the .idx is not what Megatron writes, or of a type that is none of `dtypes`."""
        with open(f"{prefix}.idx", "rb", buffering=0) as file:
            self._index = index = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(index) < HEADER.size:
            raise ValueError(f"{len(index)} bytes, less than its header")
        magic, version, code, num_sequences, num_borders = HEADER.unpack_from(index)
        if (magic, version) != (MAGIC, VERSION) or code not in DTYPES or not num_borders:
            raise ValueError("bad header")
        if DTYPES[code] not in dtypes:
            raise ValueError(f"holds {DTYPES[code]}, not {' or '.join(dtypes)}")
        self.dtype = np.dtype(DTYPES[code])
        num_modes = num_sequences if multimodal else 0
        needed = HEADER.size + 12 * num_sequences + 8 * num_borders + num_modes
        if len(index) < needed:
            raise ValueError(f"{len(index)} bytes, and its header asks for {needed}")
        place = HEADER.size
        arrays = []
        counts = (num_sequences, num_sequences, num_borders, num_modes)
        for dtype, count in zip((np.int32, np.int64, np.int64, np.int8), counts, strict=True):
            arrays.append(np.frombuffer(index, dtype, count, place))
            place += arrays[-1].nbytes
        self.sequence_lengths, self.sequence_pointers, self.document_indices, self.sequence_modes = arrays
        self._bin = os.open(f"{prefix}.bin", os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._bin)
        self.bin_bytes = os.fstat(self._bin).st_size

    @property
    def idx_bytes(self) -> int:
        """Size of the .idx."""
        return len(self._index)

    def idx_sha256(self) -> bytes:
        """SHA-256 of the .idx, whose pages are then given back: few of them are read again."""
        digest = sha256(self._index).digest()
        self._index.madvise(mmap.MADV_DONTNEED)
        return digest

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` tokens from byte `offset` of the .bin, of `dtype`. Raises ValueError where they lie outside."""
        if count < 0 or offset < 0:
            raise ValueError(f"a sequence of {count} tokens from {offset}")
        stop = offset + self.dtype.itemsize * count
        if stop > self.bin_bytes:  # before as much memory is asked for
            raise ValueError(f"bytes {offset} to {stop} of {self.bin_bytes}")
        ids = np.empty(count, self.dtype)
        left = ids.view(np.uint8).data
        while len(left) != (got := os.preadv(self._bin, [left], offset)):
            if not got:
                raise ValueError("the .bin has become shorter")
            left, offset = left[got:], offset + got  # a call gives 2 GiB at most, and some file systems less
        return ids


def open_indexed(
    prefix: Path, multimodal: bool, dtypes: Collection[str] = ("int32",), remedy: str = "write the shard again"
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
