"""What launchers tell the processes that they start: `deepspeed`, torchrun, `srun` with a task per process, `mpirun`.

Each has variables of its own. `detect_launcher` reads those of whichever launcher is there; nothing here changes the environment.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ttt_dist.util.errors import UserError

Environment = Mapping[str, str]

PORTS = range(15000, 31000)  # to meet at; below what systems give to outgoing connections
NOT_A_STEP = 0xFFFFFFF0  # SLURM numbers a batch script, an interactive shell and the like from here on

# Rank, size, rank and number on this host. Open MPI, MVAPICH2, and what MPICH, Intel MPI and `srun --mpi=pmi2` set.
MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


@dataclass(frozen=True, kw_only=True)
class DistInfo:
    """Where this process stands among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: int = 0
    """Number of this process's host among `hosts`."""
    hosts: tuple[str, ...] = ()
    """What the launcher calls the hosts of the run; empty where it does not tell."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class LaunchInfo:
    """A launcher's processes, and where they are to meet: None where the launcher does not tell."""

    dist_info: DistInfo
    address: str | None = None
    port: int | None = None


def detect_launcher(environment: Environment) -> LaunchInfo:
    """What the launcher around this process says; without one, the process is alone. Raises UserError for nonsense.

    The variables that torch goes by come first, since a launcher that sets them may itself have been started by another:
    `deepspeed` or torchrun in a task of srun. For the same reason mpirun's come before SLURM's.
    """
    try:
        return (
            _of_torch(environment)
            or _of_mpi(environment)
            or _of_slurm(environment)
            or LaunchInfo(DistInfo(rank=0, world_size=1, local_rank=0, local_size=1))
        )
    except (KeyError, ValueError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise UserError(f"the launcher's environment variables make no sense: {what}") from None


def _of_torch(env: Environment) -> LaunchInfo | None:
    """`deepspeed`, torchrun, or variables set by hand."""
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    local_size = env.get("LOCAL_SIZE") or env.get("LOCAL_WORLD_SIZE") or size
    # `deepspeed` counts hosts as CROSS_*, in the order of the host file; torchrun as GROUP_*.
    host, num_hosts = (int(env.get(f"CROSS_{end}") or env.get(f"GROUP_{also}") or default)
                       for end, also, default in (("RANK", "RANK", 0), ("SIZE", "WORLD_SIZE", 0)))  # fmt: skip
    hosts = tuple(f"host {number} of {num_hosts}" for number in range(1, num_hosts + 1))
    return LaunchInfo(
        _checked(
            DistInfo(
                rank=rank,
                world_size=size,
                local_rank=int(env.get("LOCAL_RANK", 0)),
                local_size=int(local_size),
                host=host,
                hosts=hosts,
            )
        )
    )


def _of_mpi(env: Environment) -> LaunchInfo | None:
    """`mpirun`, which tells of no address. Under `srun --mpi=pmi2`, SLURM knows it, and what is on this host."""
    for rank, size, local_rank, local_size in MPI_NAMES:
        if rank in env and size in env:
            if local_rank not in env:
                return _of_slurm(env)
            num_local = int(env.get(local_size, env[size]))
            return LaunchInfo(
                _checked(
                    DistInfo(
                        rank=int(env[rank]),
                        world_size=int(env[size]),
                        local_rank=int(env[local_rank]),
                        local_size=num_local,
                    )
                )
            )
    return None


def _of_slurm(env: Environment) -> LaunchInfo | None:
    """A task of a step, which only srun starts: a batch script or an interactive shell has SLURM_NTASKS and is alone."""
    if "SLURM_STEP_NUM_TASKS" not in env or int(env.get("SLURM_STEP_ID", NOT_A_STEP)) >= NOT_A_STEP:
        return None
    hosts, host = tuple(expand_hosts(env["SLURM_STEP_NODELIST"])), int(env["SLURM_NODEID"])
    dist_info = DistInfo(
        rank=int(env["SLURM_PROCID"]),
        world_size=int(env["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(env["SLURM_LOCALID"]),
        local_size=tasks_per_host(env["SLURM_STEP_TASKS_PER_NODE"])[host],
        host=host,
        hosts=hosts,
    )
    # Another job on the same host, and another step of the same job, must meet elsewhere.
    port = PORTS[(int(env["SLURM_JOB_ID"]) + 101 * int(env["SLURM_STEP_ID"])) % len(PORTS)]
    return LaunchInfo(_checked(dist_info), hosts[0], port)


def _checked(dist_info: DistInfo) -> DistInfo:
    if not (0 <= dist_info.rank < dist_info.world_size and 0 <= dist_info.local_rank < dist_info.local_size):
        raise ValueError(
            f"rank {dist_info.rank} of {dist_info.world_size}, on its host {dist_info.local_rank} of {dist_info.local_size}"
        )
    return dist_info


def expand_hosts(text: str) -> list[str]:
    """SLURM's short form of a list of hosts: `n[1-2,07],login` is n1, n2, n07, login. Raises ValueError."""
    return [name for item in _outside_brackets(text) for name in _expanded(item)]


def _outside_brackets(text: str) -> list[str]:
    """Split at the commas that separate hosts, not at those within brackets."""
    items = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(items) != text or not items:
        raise ValueError(f"{text!r} is no list of hosts")
    return items


def _expanded(item: str) -> Iterator[str]:
    head, bracket, rest = item.partition("[")
    if not bracket:
        yield item
        return
    choices, _, tail = rest.partition("]")
    for choice in choices.split(","):
        first, _, last = choice.partition("-")
        for number in range(int(first), int(last or first) + 1):
            for end in _expanded(tail) if tail else ("",):
                yield f"{head}{number:0{len(first)}d}{end}"


def tasks_per_host(text: str) -> list[int]:
    """SLURM's short form of counts: `2(x3),1` is 2, 2, 2, 1. Raises ValueError."""
    counts = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if match is None:
            raise ValueError(f"{text!r} is no list of tasks per node")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
