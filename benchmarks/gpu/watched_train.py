"""train.py for some steps: its first weights drawn on the device, two of its steps watched for waits, ended before it saves.

python -m benchmarks.gpu.watched_train FIGURES DEVICE STEPS --config CONFIG [section.key=value ...]
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ttt_dist import train
from ttt_dist.launch.process_group import current_dist_info, prepare_process
from ttt_dist.util.console import run_command

WATCHED = (4, 5)  # steps, from 1: nothing is compiled any more


class Watch:
    """In the place of `train_step`."""

    def __init__(self, train_step: Any, figures: Path, last: int) -> None:
        self.train_step, self.figures, self.last = train_step, figures, last
        self.step, self.waits, self.num_micro_batches = 0, Counter[str](), 0

    def __call__(self, engine: Any, mesh: Any, batches: Any, *arguments: Any) -> Any:
        """A step; instead of the one after the last, the end of the process, when all its records are written."""
        import torch

        self.step += 1
        if self.step > self.last:
            self.end()
        self.num_micro_batches = len(batches)
        if self.step in WATCHED and torch.cuda.is_available():
            from benchmarks.gpu.waits import counted_waits

            with counted_waits(self.waits):
                return self.train_step(engine, mesh, batches, *arguments)
        return self.train_step(engine, mesh, batches, *arguments)

    def end(self) -> None:
        """Hand over what was counted. The model's memory and the process group go with the process."""
        import torch
        from torch._dynamo.utils import counters

        from benchmarks.gpu.waits import by_micro_batch

        breaks = sum(counters["graph_break"].values())
        figures: dict[str, Any] = {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": breaks}
        if torch.cuda.is_available():
            figures |= by_micro_batch(self.waits, len(WATCHED), self.num_micro_batches)
        self.figures.write_text(json.dumps(figures), encoding="utf8")
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    """Put the watch in, and train."""
    figures, device, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    sys.argv[1:4] = []
    prepare_process(current_dist_info().local_size)  # the loop imports deepspeed, which looks around once
    from benchmarks.gpu.setting import weights_drawn_on
    from ttt_dist.training import loop

    watch = Watch(loop.train_step, figures, steps)
    with weights_drawn_on(device), patch.object(loop, "train_step", watch):
        train.main()


if __name__ == "__main__":
    run_command(main)
