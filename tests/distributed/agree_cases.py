"""What the processes of test_agree.py run: plans made apart, and the plan that comes of them."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ttt_dist.config.loader import read_config
from ttt_dist.data import metadata
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.training.plan import TrainPlan, agree, prepare
from ttt_dist.training.stop_signals import SignalHandler
from ttt_dist.util.errors import AgreedError


def plans(config: Path, run_dir: Path, changes: Callable[[TrainPlan], None] | None = None) -> dict[str, str]:
    """What this process has in its own plan and in the common one, or what it is told."""
    rank, size = dist.get_rank(), dist.get_world_size()
    info = DistInfo(rank=rank, world_size=size, local_rank=rank, local_size=size)
    os.environ["RANK"] = str(rank)
    settings = read_config(config, [f"run_dir={run_dir}", "deepspeed=ds_configs/zero3.json"])
    own = prepare(settings, info, is_elsewhere=True, trusts_files=True)
    if changes is not None:
        changes(own)
    try:
        common = agree(own, info)
    except AgreedError as error:
        return {"error": str(error)}
    told = {"own": own, "common": common}
    return {
        name: f"{plan.start and plan.start.name}, masks {plan.config.objective.masking}" for name, plan in told.items()
    }


def due_saves() -> list[bool]:
    """Whether this process saves where the hour has come by all clocks, by that of rank 0 alone, by that of rank 1 alone."""
    found, handler, rank = [], SignalHandler(), dist.get_rank()
    for late in ((0, 1), (0,), (1,)):
        handler.save_at = time.monotonic() if rank in late else math.inf
        assert handler.should_stop(torch.device("cpu")) is None
        found.append(handler.is_save_due)
    handler.close()
    return found


def other_shards(plan: TrainPlan) -> None:
    """On rank 1 the folder of the shards is a copy of another day."""
    if dist.get_rank() == 1:
        plan.loader.sources.readers["train"].meta["checksum"] = "1" * 64


def lost_shard(plan: TrainPlan) -> None:
    """A file goes, which only one process looks for."""
    dist.barrier()
    if dist.get_rank() == 0:
        metadata.with_suffix(plan.loader.sources.readers["train"].prefix, ".bin").unlink()
    dist.barrier()
