"""A window of steps under torch.profiler: a trace for Perfetto (ui.perfetto.dev) and a table of the heaviest operations.

Outside the window nothing is measured, and nothing of the profiler is imported or made.
"""

from pathlib import Path
from typing import Any

import torch

from ttt_dist.config.run import Config
from ttt_dist.telemetry.best_effort import BestEffort

NUM_ROWS = 40


class ProfileWindow:
    """Profiles the steps of this process that are in `steps`, which count from 1."""

    def __init__(self, folder: Path, rank: int, steps: range) -> None:
        """Writes `folder`/steps-10-12-rank-00000.json.gz and .txt."""
        self.folder, self.rank, self.steps = folder, rank, steps
        self._profiler: Any = None

    @classmethod
    def of_run(cls, config: Config, rank: int, start_step: int) -> "ProfileWindow":
        """What the settings ask of a process that goes on after `start_step`; mostly nothing."""
        chosen = config.telemetry
        first, end = max(chosen.profile_start, start_step + 1), chosen.profile_start + chosen.profile_steps
        steps = range(first, min(end, config.train.steps + 1)) if rank in chosen.profile_ranks else range(0)
        return cls(Path(config.run_dir) / "profile", rank, steps)

    def begin_step(self, number: int) -> None:
        """Before a step, its reading of data included."""
        if number == next(iter(self.steps), None):
            self._begin()

    def end_step(self, number: int) -> None:
        """After it."""
        if self._profiler is not None:
            self._last = number
            if number == self.steps[-1]:
                self.close()

    def close(self) -> None:
        """End a window that is open and write what it holds. A profiler left running would crash Python at its exit."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        with BestEffort()(self.folder):
            self._write(profiler)

    def _write(self, profiler: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self.steps[0]}-{self._last}-rank-{self.rank:05d}"
        profiler.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        device = "device" if torch.cuda.is_available() else "cpu"
        table = profiler.key_averages().table(
            sort_by=f"self_{device}_time_total", row_limit=NUM_ROWS, max_name_column_width=60
        )
        (self.folder / f"{name}.txt").write_text(table, encoding="utf8")

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self._profiler, self._last = profile(activities=activities), self.steps[0]
        self._profiler.start()
