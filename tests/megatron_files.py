"""Megatron's own reader and writer of indexed data sets, which ours are compared with."""

import logging
import warnings
from functools import cache
from typing import Any


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
