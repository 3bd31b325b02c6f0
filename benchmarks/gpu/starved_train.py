"""train.py that finds no device memory in one of its steps: what it holds by then is all that it may have.

python -m benchmarks.gpu.starved_train --config CONFIG [section.key=value ...]
"""

from typing import Any
from unittest.mock import patch

import torch

from ttt_dist import train
from ttt_dist.launch.process_group import current_dist_info, prepare_process
from ttt_dist.util.console import run_command

STARVED = 3  # step, from 1: the moments of Adam are there
SPARE = 64 << 20  # bytes, which a step of two packs exceeds by far


class Starve:
    """In the place of `train_step`."""

    def __init__(self, train_step: Any) -> None:
        self.train_step, self.step = train_step, 0

    def __call__(self, *arguments: Any) -> Any:
        """A step; before the one that is to fail, the limit."""
        self.step += 1
        if self.step == STARVED:
            torch.cuda.empty_cache()
            allowed = torch.cuda.memory_reserved() + SPARE
            torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
        return self.train_step(*arguments)


def main() -> None:
    """Put the limit in, and train."""
    prepare_process(current_dist_info().local_size)  # the loop imports deepspeed, which looks around once
    from benchmarks.gpu.setting import weights_drawn_on
    from ttt_dist.training import loop

    with weights_drawn_on("cuda"), patch.object(loop, "train_step", Starve(loop.train_step)):
        train.main()


if __name__ == "__main__":
    run_command(main)
