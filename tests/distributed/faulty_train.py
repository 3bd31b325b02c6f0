"""train.py with a fault put into it: FAULT=hang:1:7 (rank 1 stops reading data at step 7) or nan:1:7-8 (its gradients of
steps 7 and 8 are not finite, while its loss is) or data:1:7 (the packs of step 7 that are dealt to rank 1 have weights that
are not, whoever reads them) or gone:1:0 (it is killed before the first step). Everything else is the real program.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ttt_dist import train
from ttt_dist.data.loader import PackLoader
from ttt_dist.util.console import run_command

KIND, RANK, STEPS = os.environ["FAULT"].split(":")
FIRST, LAST = (int(step) for step in (STEPS.split("-") * 2)[:2])


def is_here(step: int) -> bool:
    """Whether the fault is in this rank's step number `step`, counted from 1."""
    return os.environ.get("RANK", "0") == RANK and FIRST <= step <= LAST


def hang(read: Any, loader: PackLoader, step: int) -> Any:
    """Read the packs of a step, or never come back."""
    while is_here(step + 1):
        time.sleep(1)
    return read(loader, step)


def poison(train_step: Any, engine: Any, *arguments: Any) -> Any:
    """Run a step with gradients that are not finite where the fault is."""
    if not is_here(engine.global_steps + 1):
        return train_step(engine, *arguments)
    right, engine.backward = engine.backward, lambda loss, **named: right(loss * float("nan"), **named)
    try:
        return train_step(engine, *arguments)
    finally:
        engine.backward = right


def spoil(read: Any, loader: PackLoader, step: int, number: int, dp_rank: int) -> Any:
    """A micro-batch; its weights are not finite where the fault is."""
    batch = read(loader, step, number, dp_rank)
    if str(dp_rank) == RANK and FIRST <= step + 1 <= LAST:
        batch.ar_weights *= float("nan")
    return batch


def be_killed(restore: Any, *arguments: Any) -> Any:
    """Restore the run, or end without a word."""
    if is_here(0):
        os.kill(os.getpid(), signal.SIGKILL)
    return restore(*arguments)


def main() -> None:
    """Put the fault in, and train."""
    if KIND == "data":
        micro_batch = PackLoader._micro_batch
        PackLoader._micro_batch = lambda *arguments: spoil(micro_batch, *arguments)  # type: ignore[method-assign]
    elif KIND == "gone":
        from ttt_dist.checkpoint import restore

        right = restore.restore
        restore.restore = lambda *arguments: be_killed(right, *arguments)
    elif KIND == "hang":
        read = PackLoader.step
        PackLoader.step = lambda loader, step: hang(read, loader, step)  # type: ignore[method-assign]
    else:
        from ttt_dist.launch.process_group import current_dist_info, prepare_process

        prepare_process(current_dist_info().local_size)  # the loop imports deepspeed, which looks around once
        from ttt_dist.training import loop, suspect_step

        train_step = loop.train_step
        loop.train_step = suspect_step.train_step = lambda *arguments: poison(train_step, *arguments)
    train.main()


if __name__ == "__main__":
    run_command(main)
