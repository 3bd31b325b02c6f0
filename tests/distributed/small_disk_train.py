"""train.py on a disk that fills up while a checkpoint is written: with FULL_AFTER=2, two are still written whole.

From then on no file may grow beyond a few kB (RLIMIT_FSIZE), as on a full disk: small files still fit. FULL_FOR=1: of one
save; the next one finds space again.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ttt_dist import train
from ttt_dist.checkpoint import manager
from ttt_dist.util.console import run_command

LIMIT = 20_000  # bytes
PLENTY = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def on_small_disk(begin: Callable[..., Any], *arguments: Any) -> Any:
    """Begin a checkpoint where there is space for no more, or for this one still."""
    left = int(os.environ["FULL_AFTER"])
    is_full = -int(os.environ.get("FULL_FOR", "1000")) < left <= 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT if is_full else PLENTY, PLENTY))
    os.environ["FULL_AFTER"] = str(left - 1)
    return begin(*arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    right = manager.begin
    manager.begin = lambda *arguments: on_small_disk(right, *arguments)
    run_command(train.main)
