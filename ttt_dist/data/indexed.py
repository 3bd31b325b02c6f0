"""Megatron's indexed data sets (`.bin` + `.idx`), written and read as Megatron-Core does, byte for byte, without its import.

That import takes seconds and warns of CUDA extras that a file format has no use for, and Megatron's builder loops over
sequences. The `.idx` is a header of 34 bytes and three or four arrays; tests compare both ways with Megatron's own.
"""

import struct
from array import array
from collections.abc import Collection, Iterable
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
    """A .bin and its .idx, mapped: sequences of tokens of one `dtype`, and documents of several sequences each.

    `sequence_lengths` int32 [n] in tokens, `sequence_pointers` int64 [n] in bytes, `document_indices` int64 [documents + 1]
    (first sequence of each, and the end), `sequence_modes` int8 [n] where `multimodal`, else empty.
    """

    def __init__(self, prefix: Path, multimodal: bool, dtypes: Collection[str]) -> None:
        """Raises ValueError where the .idx is not what Megatron writes, or of a type that is none of `dtypes`."""
        index = np.memmap(f"{prefix}.idx", mode="r")
        if len(index) < HEADER.size:
            raise ValueError(f"{len(index)} bytes, less than its header")
        magic, version, code, num_sequences, num_borders = HEADER.unpack(index[: HEADER.size].tobytes())
        if (magic, version) != (MAGIC, VERSION) or code not in DTYPES or not num_borders:
            raise ValueError("bad header")
        if DTYPES[code] not in dtypes:
            raise ValueError(f"holds {DTYPES[code]}, not {' or '.join(dtypes)}")
        self.dtype = np.dtype(DTYPES[code])
        num_modes = num_sequences if multimodal else 0
        needed = HEADER.size + 12 * num_sequences + 8 * num_borders + num_modes
        if len(index) < needed:
            raise ValueError(f"{len(index)} bytes, and its header asks for {needed}")
        buffer, place = index.data, HEADER.size
        arrays = []
        counts = (num_sequences, num_sequences, num_borders, num_modes)
        for dtype, count in zip((np.int32, np.int64, np.int64, np.int8), counts, strict=True):
            arrays.append(np.frombuffer(buffer, dtype, count, place))
            place += arrays[-1].nbytes
        self.sequence_lengths, self.sequence_pointers, self.document_indices, self.sequence_modes = arrays
        self._tokens = np.memmap(f"{prefix}.bin", mode="r").data

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` tokens from byte `offset` of the .bin, of `dtype`: a view. Raises ValueError where they lie outside."""
        if count < 0:  # numpy would take it for all that follow
            raise ValueError(f"a sequence of {count} tokens")
        return np.frombuffer(self._tokens, self.dtype, count, offset)


def open_indexed(
    prefix: Path, multimodal: bool, dtypes: Collection[str] = ("int32",), remedy: str = "write the shard again"
) -> Indexed:
    """The data set at prefix. Raises UserError where its files are missing or do not fit each other."""
    for suffix in (".bin", ".idx"):
        path = prefix.with_name(prefix.name + suffix)
        if not path.is_file():
            raise UserError(f"{path}: missing; {remedy}")
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty; {remedy}")
    try:
        return Indexed(prefix, multimodal, dtypes)
    except ValueError as error:
        raise UserError(f"{prefix}.idx: not a readable Megatron index ({error}); {remedy}") from error
