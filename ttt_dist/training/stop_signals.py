"""Requests to stop: SIGTERM, SIGUSR1, SIGINT, a time limit that comes near. They are heard at once and followed at the end
of a step, by all processes together, whichever of them was asked. So is the hour of a save, by the clock of rank 0.
"""

import math
import os
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REASONS = (None, "the time limit is near", *(number.name for number in SIGNALS))
MARGIN_S = 60.0  # before the end of a SLURM job, beside two saves; at most a tenth of the job's time


class SignalHandler:
    """Listens from its making on; `close` gives the signals back to Python."""

    def __init__(self, stop_after_s: float = 0.0) -> None:
        """Ask for a stop after so many seconds (0: never) too, and before the end of the SLURM job around this process."""
        self.longest_save_s = 0.0
        """Kept up to date by whoever saves: a stop must leave time for one more."""
        self.save_at = math.inf
        """When a save is due, by time.monotonic(), also kept by whoever saves; of all ranks' clocks rank 0's counts."""
        self.is_save_due = False
        """Whether it was at the last `should_stop`; the same on all ranks."""
        self._code = 0
        # All by the clock that nobody sets; SLURM's times of day are looked at once.
        self._deadline = time.monotonic() + stop_after_s if stop_after_s else math.inf
        start, end = (_time_of_day(f"SLURM_JOB_{name}_TIME") for name in ("START", "END"))
        last_s = end - min(MARGIN_S, (end - start) / 10) if math.isfinite(start) and math.isfinite(end) else math.inf
        self._end_of_job = last_s + time.monotonic() - time.time()
        """When a SLURM job must be asked to stop, to have saved before its end, were saving nothing."""
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._code = REASONS.index(signal.Signals(number).name)
        if number == signal.SIGINT:  # whoever presses Ctrl-C twice does not want to wait
            signal.signal(number, self._before[signal.SIGINT])

    def should_stop(self, device: torch.device) -> str | None:
        """Why all processes are to stop now, or None; agrees on `is_save_due` too. Collective."""
        now = time.monotonic()
        if not self._code and now > min(self._deadline, self._end_of_job - 2 * self.longest_save_s):
            self._code = 1
        asked = torch.tensor([self._code, dist.get_rank() == 0 and now >= self.save_at], device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        code, self.is_save_due = asked[0].item(), bool(asked[1])
        return REASONS[int(code)]

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _time_of_day(name: str) -> float:
    """A variable of SLURM's, in seconds since 1970; without end where it tells none."""
    try:
        return float(os.environ.get(name, "inf"))
    except ValueError:
        return math.inf
