"""What a training process sets up around itself before any work: accelerator, threads, process group, log files.

Everything works without a launcher (one process) and under any of those that launchers.py knows.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.launch.launchers import DistInfo, detect_launcher
from ttt_dist.util.console import warn
from ttt_dist.util.errors import LostProcessError, UserError, first_line

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

TIMEOUT_S = 1800.0


def is_only_asked_about(env: Mapping[str, str]) -> bool:
    """Whether somebody has set WORLD_SIZE to ask about a run elsewhere: a launcher also says how many processes a host has."""
    return bool(env.get("WORLD_SIZE", "1") != "1" and not env.keys() & {"LOCAL_SIZE", "LOCAL_WORLD_SIZE"})


def current_dist_info(describes: bool = False) -> DistInfo:
    """Read the launcher's environment, and say it again in the variables that torch, DeepSpeed and the console go by.

    `describes`: as `detect_launcher` has it, for a dry run.
    """
    launcher = detect_launcher(os.environ, describes)
    dist_info = launcher.dist_info
    said = {
        "RANK": dist_info.rank,
        "WORLD_SIZE": dist_info.world_size,
        "LOCAL_RANK": dist_info.local_rank,
        "LOCAL_SIZE": dist_info.local_size,
    }
    os.environ.update({name: str(value) for name, value in said.items()})
    for name, value in {"MASTER_ADDR": launcher.address, "MASTER_PORT": launcher.port}.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    return dist_info


def prepare_process(local_size: int) -> None:
    """Choose the accelerator and share the cores: all that has to be done before deepspeed is imported."""
    choose_accelerator()
    share_cores(local_size)


def choose_accelerator() -> None:
    """Say what deepspeed is to use, which looks for it once, at its import."""
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def share_cores(local_size: int) -> None:
    """Give torch this process's share of the host's cores."""
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would take all cores, and two of them then run several times slower than one. SLURM may have given
        # each task cores of its own.
        threads = int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or len(os.sched_getaffinity(0)) // local_size
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads))
        import torch

        torch.set_num_threads(max(1, threads))


def has_gpu() -> bool:
    """Whether torch finds a GPU. Its import takes seconds: where no driver is installed, it is not asked."""
    if "torch" not in sys.modules and not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _has_driver() -> bool:
    """Whether this machine has CUDA's driver, or the kernel's part of ROCm."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def init_process_group(
    dist_info: DistInfo, timeout_s: float = TIMEOUT_S, queues_in_order: bool = False, tried: Path | None = None
) -> torch.device:
    """Join the process group (nccl on CUDA, gloo elsewhere) and return this process's device.

    `timeout_s` is how long the processes may take to come together, and what the group's operations may take. Tensor
    parallelism asks for `queues_in_order`: Megatron overlaps sums with products only where the device runs what is queued
    in order. With a folder `tried`, every node is tried before anything is built, and its disk there, see `check_nodes`. Raises
    LostProcessError where some do not come, or a node is broken; UserError where they cannot meet.
    """
    import torch
    import torch.distributed as dist

    if queues_in_order:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # read when the device is first used
    device = choose_device(dist_info)
    store = dist.HashStore() if dist_info.world_size == 1 else _meet(dist_info, timeout_s)
    if device.type == "cuda":
        require_own_gpu(store, str(torch.cuda.get_device_properties(device).uuid))
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=dist_info.rank,
            world_size=dist_info.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" and dist_info.world_size > 1 else None,
        )
    except RuntimeError as error:
        raise LostProcessError(
            f"{socket.gethostname()} cannot connect to all others over {backend} ({str(error).splitlines()[0]}); "
            f"where they are up, set {backend.upper()}_SOCKET_IFNAME to the network interface that joins them"
        ) from error
    if tried is not None:
        from ttt_dist.launch.node_check import check_nodes
        from ttt_dist.launch.rendezvous import is_lost_connection

        try:
            check_nodes(tried, device, is_first_of_host=dist_info.local_rank == 0)
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            raise LostProcessError(
                f"{socket.gethostname()} has lost a connection while nodes were tried ({first_line(error)}); "
                "the message of the process that has gone says why"
            ) from error
    return device


def choose_device(dist_info: DistInfo) -> torch.device:
    """This process's GPU, where there are any; LOCAL_RANK becomes its number, as DeepSpeed goes by that."""
    import torch

    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_devices:
        return torch.device("cpu")
    index = 0 if num_devices == 1 else dist_info.local_rank  # SLURM may show each task its own one only
    if index >= num_devices:
        raise UserError(
            f"{socket.gethostname()} has {num_devices} GPUs for {dist_info.local_size} processes; start one process per GPU"
        )
    os.environ["LOCAL_RANK"] = str(index)
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # DeepSpeed wants it to be the same
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def require_own_gpu(store: dist.Store, identity: str) -> None:
    """Raise UserError where another process of the run has taken this GPU."""
    if store.add(f"gpu/{socket.gethostname()}/{identity}", 1) > 1:
        raise UserError(
            f"two processes on {socket.gethostname()} have the same GPU ({identity}); start one process per GPU: "
            "--num_gpus, slots= in the host file, --ntasks-per-node"
        )


def _meet(dist_info: DistInfo, timeout_s: float) -> dist.Store:
    """The store in which all processes have registered."""
    from ttt_dist.launch.rendezvous import rendezvous

    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        _agree_over_mpi(dist_info)
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"MASTER_PORT={port}: no port; give a number from 1 to 65535")
    store = rendezvous(dist_info, address, int(port), timeout_s)
    if dist_info.local_size < dist_info.world_size:
        _choose_interface(address, int(port))
    return store


def _agree_over_mpi(dist_info: DistInfo) -> None:
    """Rank 0 tells the others over MPI where to meet. What the environment gives stays as it is."""
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # done below: at exit it would wait for processes that have died
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"MASTER_ADDR and MASTER_PORT are not set, and MPI cannot be asked ({error}); set both for all processes"
        ) from None
    from ttt_dist.launch.rendezvous import free_port

    if MPI.COMM_WORLD.size != dist_info.world_size:
        raise UserError(
            "MASTER_ADDR and MASTER_PORT are not set; set both for all processes, to an address of rank 0's host"
        )
    host = "127.0.0.1" if dist_info.local_size == dist_info.world_size else socket.gethostname()
    address, port = MPI.COMM_WORLD.bcast((host, free_port()))
    MPI.Finalize()
    os.environ.setdefault("MASTER_ADDR", address)
    os.environ.setdefault("MASTER_PORT", str(port))


def _choose_interface(address: str, port: int) -> None:
    """Let gloo listen where this host reaches rank 0's: on many systems a host's own name points to itself alone."""
    import psutil

    family, kind, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        mine = probe.getsockname()[0]
    names = [name for name, given in psutil.net_if_addrs().items() if mine in {one.address for one in given}]
    if names and names != ["lo"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def leave_process_group() -> None:
    """Tear the process group down where there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def log_to_files(folder: Path, rank: int) -> None:
    """Send the libraries' log messages of this rank to `folder`/rank-00000.log; only warnings reach the terminal.

    Where the disk takes none they are lost, which is told once.
    """
    from deepspeed.utils import logger as deepspeed_logger

    logging.raiseExceptions = False  # else every message that a full disk does not take is a traceback on the terminal
    handler: logging.Handler
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / f"rank-{rank:05d}.log")
    except OSError as error:
        warn(f"{folder}: cannot be written ({error.strerror}); the run goes on without it")
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for logger in (logging.getLogger(), deepspeed_logger):
        for existing in logger.handlers:
            existing.setLevel(logging.WARNING)
        logger.addHandler(handler)
    deepspeed_logger.setLevel(logging.INFO)
