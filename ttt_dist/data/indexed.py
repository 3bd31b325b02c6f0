"""Megatron's indexed data sets (`.bin` + `.idx`), imported when first needed.

The import takes seconds and warns of CUDA extras that a file format has no use for; both are kept away from commands
that read no shard.
"""

import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ttt_dist.errors import UserError


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
