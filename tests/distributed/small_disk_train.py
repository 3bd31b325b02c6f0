"""train.py on a disk that fills up while a checkpoint is written: with FULL_AFTER=2, two are still written whole.

From then on no file may grow beyond a few kB (RLIMIT_FSIZE), as on a full disk: small files still fit.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ttt_dist import train
from ttt_dist.checkpoint import manager
from ttt_dist.util.console import main_guard

LIMIT = 20_000  # bytes


def save_on_small_disk(save: Any, *arguments: Any) -> Any:
    """Save a checkpoint where there is space for no more, or for this one still."""
    left = int(os.environ["FULL_AFTER"])
    if left == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    os.environ["FULL_AFTER"] = str(left - 1)
    return save(*arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    right = manager.save
    manager.save = lambda *arguments: save_on_small_disk(right, *arguments)
    main_guard(train.main)
