"""A device without memory for a step: torch's snapshot of what it holds into the run's logs, and one line with the remedy.

The snapshot (torch.cuda.memory) names every block that is held. With `telemetry.memory_history` it also has the stacks that
took them, and what was taken and given back before: about two microseconds for each, the newest MAX_ENTRIES of them.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ttt_dist.config.run import Config
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.telemetry.best_effort import BestEffort
from ttt_dist.training.memory_estimate import memory_per_rank
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from ttt_dist.training.plan import TrainPlan

MAX_ENTRIES = 100_000  # a few hundred MB at most, as torchtitan has it
VIEWER = "https://docs.pytorch.org/memory_viz"
LIGHTER = {"none": "selective", "selective": "full"}


@contextmanager
def out_of_memory_told(plan: "TrainPlan", doing: Callable[[], str]) -> Iterator[None]:
    """Inside, torch.OutOfMemoryError becomes a UserError, and the snapshot is written before the memory is let go.

    `doing` says what of the run is under way.
    """
    config, rank = plan.config, plan.mesh.rank
    if config.telemetry.memory_history and torch.cuda.is_available():
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=MAX_ENTRIES)
    try:
        yield
    except torch.OutOfMemoryError as error:
        path = Path(config.run_dir) / "logs" / f"rank-{rank:05d}.memory.pickle"
        with BestEffort()(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))
        stage, layout = plan.metadata.zero_stage, plan.metadata.layout
        estimate = memory_per_rank(config, layout, plan.mesh, stage, plan.loader.seq_len, on_cuda=True)
        said = str(error).partition("See documentation")[0].rstrip(" .")
        raise UserError(
            f"rank {rank} ({socket.gethostname()}), {doing()}: {said}. The dry run's estimate is {estimate}. Set "
            f"{' or '.join(remedies(config, plan.mesh, stage))}; {path} has what is held ({VIEWER})"
            f"{'' if config.telemetry.memory_history else ', with telemetry.memory_history=true the stacks too'}"
        ) from error


def remedies(config: Config, mesh: Mesh, zero_stage: int) -> list[str]:
    """Settings by which a process of this run would need less, the cheapest first."""
    train, found = config.train, []
    if train.micro_batch > 1:
        found.append(f"a train.micro_batch below {train.micro_batch}")
    if lighter := LIGHTER.get(train.activation_checkpointing):
        found.append(f"train.activation_checkpointing={lighter}")
    if zero_stage < (3 if mesh.pipeline == 1 else 1) and mesh.zero_size > 1:
        found.append(f"deepspeed=ds_configs/zero{zero_stage + 1}.json")
    return [*found, f"parallel.tensor={2 * mesh.tensor}"]
