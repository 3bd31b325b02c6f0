"""Megatron's indexed data sets (`.bin` + `.idx`): written by Megatron-Core, imported where something is written, read here.

The import takes seconds and warns of CUDA extras that a file format has no use for. Reading is a matter of a header of 34
bytes and three or four arrays, hence a reader of our own; a test compares it with Megatron's on the same files.
"""

import logging
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ttt_dist.errors import UserError

# Magic bytes, version, code of the tokens' type, sequences, entries of document_indices (one more than documents).
HEADER = struct.Struct("<9sQBQQ")
MAGIC, VERSION = b"MMIDIDX\0\0", 1
DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}


@cache
def indexed_dataset() -> Any:
    """The module megatron.core.datasets.indexed_dataset, imported without its warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from megatron.core.datasets import indexed_dataset as module
    finally:
        logging.disable(level)
    return module


def new_builder(bin_path: Path, multimodal: bool) -> Any:
    """An IndexedDatasetBuilder of int32 that writes to bin_path."""
    return indexed_dataset().IndexedDatasetBuilder(str(bin_path), dtype=np.int32, multimodal=multimodal)


class Indexed:
    """A .bin and its .idx, mapped: sequences of int32, and documents of several sequences each.

    `sequence_lengths` int32 [n] in tokens, `sequence_pointers` int64 [n] in bytes, `document_indices` int64 [documents + 1]
    (first sequence of each, and the end), `sequence_modes` int8 [n] where `multimodal`, else empty.
    """

    def __init__(self, prefix: Path, multimodal: bool) -> None:
        """Raises ValueError where the .idx is not what Megatron writes, UserError where it is of another type."""
        index = np.memmap(f"{prefix}.idx", mode="r")
        if len(index) < HEADER.size:
            raise ValueError(f"{len(index)} bytes, less than its header")
        magic, version, code, num_sequences, num_borders = HEADER.unpack(index[: HEADER.size].tobytes())
        if (magic, version) != (MAGIC, VERSION) or code not in DTYPES:
            raise ValueError("bad header")
        if DTYPES[code] != "int32":
            raise UserError(f"{prefix}.idx: holds {DTYPES[code]}, not int32; write the shard again")
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
        """`count` tokens from byte `offset` of the .bin, int32. Raises ValueError where they lie outside."""
        return np.frombuffer(self._tokens, np.int32, count, offset)


def open_indexed(prefix: Path, multimodal: bool) -> Indexed:
    """The data set at prefix. Raises UserError where its files are missing or do not fit each other."""
    for suffix in (".bin", ".idx"):
        path = prefix.with_name(prefix.name + suffix)
        if not path.is_file():
            raise UserError(f"{path}: missing; write the shard again")
    try:
        return Indexed(prefix, multimodal)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{prefix}.idx: not a readable Megatron index ({error}); write the shard again") from error
