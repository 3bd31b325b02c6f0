"""What a training process sets up around itself before any work: accelerator, threads, process group, log files.

Everything works without a launcher (one process), under the `deepspeed` launcher, and under any other that sets RANK,
LOCAL_RANK and WORLD_SIZE.
"""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def processes() -> Processes:
    """Read the launcher's environment; a process without one is alone."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or str(world_size)
    return Processes(
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(local_size),
    )


def prepare_process(local_size: int) -> None:
    """Choose the accelerator and share the cores. Must run before deepspeed is imported: it looks once, at its import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would take all cores, and two of them then run several times slower than one.
        threads = max(1, len(os.sched_getaffinity(0)) // local_size)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def init_process_group(place: Processes) -> torch.device:
    """Join the process group (nccl on CUDA, gloo elsewhere) and return this process's device."""
    import deepspeed

    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(place.local_rank)
    for name, value in _alone().items() if place.world_size == 1 else ():
        os.environ.setdefault(name, value)
    # DeepSpeed would compile a kernel for inference here, which needs a C++ compiler and is of no use in training.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    return torch.device("cuda", place.local_rank) if on_cuda else torch.device("cpu")


def leave_process_group() -> None:
    """Tear the process group down where there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def log_to_files(folder: Path, rank: int) -> None:
    """Send the libraries' log messages of this rank to `folder`/rank-00000.log; only warnings reach the terminal."""
    from deepspeed.utils import logger as deepspeed_logger

    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank-{rank:05d}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for logger in (logging.getLogger(), deepspeed_logger):
        for existing in logger.handlers:
            existing.setLevel(logging.WARNING)
        logger.addHandler(handler)
    deepspeed_logger.setLevel(logging.INFO)


def _alone() -> dict[str, str]:
    """The rendezvous of a group of one: a free port of this machine."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
