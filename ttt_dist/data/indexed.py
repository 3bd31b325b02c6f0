"""Megatron's indexed data sets (`.bin` + `.idx`): read by Megatron, written here, many documents with one call.

The import takes seconds and warns of CUDA extras that a file format has no use for; both are kept away from commands
that read no shard.
"""

import logging
import struct
import warnings
from array import array
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ttt_dist.errors import UserError

INT32 = 4
"""Megatron's number of the type of ids."""


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


class IndexedBuilder:
    """Writes what Megatron's IndexedDatasetBuilder of int32 writes, byte for byte, without its loops over sequences.

    A document is a number of sequences; with `multimodal` each of them has a mode byte.
    """

    def __init__(self, bin_path: Path, multimodal: bool) -> None:
        self.data_file = bin_path.open("wb")
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
        with open(idx_path, "wb") as file:
            file.write(b"MMIDIDX\0\0" + struct.pack("<QB", 1, INT32))
            file.write(struct.pack("<QQ", len(lengths), len(self._document_ends)))
            for values in (lengths, places * 4, np.array(self._document_ends, "<i8")):
                file.write(values.data)
            if self._multimodal:
                file.write(self._modes)


def new_builder(bin_path: Path, multimodal: bool) -> IndexedBuilder:
    """A builder that writes int32 to bin_path."""
    return IndexedBuilder(bin_path, multimodal)


def open_indexed(prefix: Path, multimodal: bool) -> Any:
    """The IndexedDataset at prefix. Raises UserError where its files are missing or do not fit each other."""
    for suffix in (".bin", ".idx"):
        path = prefix.with_name(prefix.name + suffix)
        if not path.is_file():
            raise UserError(f"{path}: missing; write the shard again")
    try:
        dataset = indexed_dataset().IndexedDataset(str(prefix), multimodal=multimodal)
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{prefix}.idx: not a readable Megatron index ({error}); write the shard again") from error
    if dataset.index.dtype is not np.int32:
        raise UserError(f"{prefix}.idx: holds {dataset.index.dtype.__name__}, not int32; write the shard again")
    return dataset
