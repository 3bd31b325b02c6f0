"""What launchers tell the processes that they start: `deepspeed`, torchrun, `srun`, `mpirun`, jsrun, Flux, Cray's PALS.

Each has variables of its own. `detect_launcher` reads those of whichever launcher is there; nothing here changes the environment.
A process that is one of several and takes itself for the only one would write over the others: where variables tell of others
and not enough of this one, that is a UserError.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ttt_dist.util.errors import UserError

Environment = Mapping[str, str]

PORTS = range(15000, 31000)  # to meet at; below what systems give to outgoing connections
MAX_HOSTS = 100_000
NOT_A_STEP = 0xFFFFFFF0  # SLURM numbers a batch script, an interactive shell and the like from here on

# Rank, size, rank and number on this host; of several names the first one that is set. Every MPI that says `*_COMM_WORLD_*`
# (Open MPI, MVAPICH), jsrun, and what speaks PMI: MPICH, Intel MPI, Cray's PALS, `srun --mpi=pmi2`, Flux.
_COMM_WORLD = re.compile(r"[A-Z0-9]+_COMM_WORLD_(?:RANK|SIZE)")
_JSRUN = ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE")
_PMI = (
    "PMI_RANK PALS_RANKID PMI_ID",
    "PMI_SIZE",
    "MPI_LOCALRANKID PMI_LOCAL_RANK PALS_LOCAL_RANKID",
    "MPI_LOCALNRANKS PMI_LOCAL_SIZE PALS_LOCAL_SIZE",
)
_FLUX = ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "")
_BY_HAND = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE LOCAL_WORLD_SIZE")
_RANK = re.compile(
    r"PMIX?_RANK|PMI_ID|PALS_RANKID|ALPS_APP_PE|JSM_NAMESPACE_RANK|FLUX_TASK_RANK|MPIRUN_RANK|HOROVOD_RANK|MP_CHILD"
    r"|[A-Z0-9]+_COMM_WORLD_RANK"
)
_SIZE = re.compile(
    r"WORLD_SIZE|LOCAL_WORLD_SIZE|PMI_SIZE|MPI_LOCALNRANKS|JSM_NAMESPACE_SIZE|FLUX_JOB_SIZE|MPIRUN_NPROCS|HOROVOD_SIZE|MP_PROCS"
    r"|[A-Z0-9]+_COMM_WORLD_SIZE"
)
"""Those and others, one of which alone says that there are more processes."""
_LATER = re.compile(
    r"(?:LOCAL_|GROUP_|NODE_|CROSS_)?RANK|MPI_LOCALRANKID|PMI_LOCAL_RANK|PALS_LOCAL_RANKID|FLUX_TASK_LOCAL_ID"
    r"|PBS_VNODENUM|[A-Z0-9]+_COMM_WORLD_LOCAL_RANK"
)
"""Those of which 0 says little: a batch script is process 0 of one."""


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


@dataclass(frozen=True)
class _Told:
    """What the variables of one kind say; None where they do not."""

    rank: int
    size: int
    local_rank: int | None
    local_size: int | None


def detect_launcher(environment: Environment, describes: bool = False) -> LaunchInfo:
    """What the launcher around this process says; without one, the process is alone. Raises UserError for nonsense.

    The variables that torch goes by come first, since a launcher that sets them may itself have been started by another:
    `deepspeed` or torchrun in a task of srun. For the same reason mpirun's come before SLURM's. `describes`: nothing will be
    started, and WORLD_SIZE alone asks about its first process.
    """
    with _nonsense_told():
        found = _of_torch(environment) or _of_mpi(environment) or _of_flux(environment) or _of_slurm(environment)
        if found is None and describes and environment.get("WORLD_SIZE"):
            found = _of_torch({**environment, "RANK": environment.get("RANK") or "0"})
        if found is None:
            _require_alone(environment)
            found = LaunchInfo(DistInfo(rank=0, world_size=1, local_rank=0, local_size=1))
        return found


@dataclass(frozen=True)
class TaskPlace:
    """Which of the processes that a launcher has started this one is, for work that is shared out and needs no group."""

    rank: int
    size: int
    is_mpi: bool
    """MPI has started them, so that they can talk over it."""
    local_rank: int = 0
    """Which one of its host, as far as it is told."""


def detect_task(environment: Environment) -> TaskPlace:
    """The place of a process that shares out work. Raises UserError as `detect_launcher`; a place on the host is not asked for.

    Where a variable tells of MPI and not of how many processes there are, `size` is 0: MPI knows.
    """
    with _nonsense_told():
        told, flux = next(_told_by_mpi(environment), None), _told(_FLUX, environment)
        by_flux = flux is not None and (told is None or told.size == flux.size)  # it offers PMI to all, MPI's or not
        is_mpi = told is not None and not by_flux
        if told := (flux if by_flux else told) or _told(_BY_HAND, environment):
            local_rank = told.local_rank if told.local_rank is not None else int(environment.get("SLURM_LOCALID") or 0)
            return TaskPlace(_require_in_range(told).rank, told.size, is_mpi and told.size > 1, local_rank)
        if slurm := _of_slurm(environment):
            it = slurm.dist_info
            return TaskPlace(it.rank, it.world_size, is_mpi=False, local_rank=it.local_rank)
        if "PMIX_RANK" in environment and "SLURM_JOB_ID" not in environment:
            return TaskPlace(int(environment["PMIX_RANK"]), 0, is_mpi=True)
        _require_alone(environment)
        return TaskPlace(0, 1, is_mpi=False)


@contextmanager
def _nonsense_told() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (LookupError, ValueError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)[:200]
        raise UserError(f"the launcher's environment variables make no sense: {what}") from None


def _of_torch(env: Environment) -> LaunchInfo | None:
    """`deepspeed`, torchrun, or variables set by hand."""
    if not env.get("RANK") or not env.get("WORLD_SIZE"):
        return None
    rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
    local_size = env.get("LOCAL_SIZE") or env.get("LOCAL_WORLD_SIZE") or size
    # `deepspeed` counts hosts as CROSS_*, in the order of the host file; torchrun as GROUP_*.
    host, num_hosts = (int(env.get(f"CROSS_{end}") or env.get(f"GROUP_{also}") or default)
                       for end, also, default in (("RANK", "RANK", 0), ("SIZE", "WORLD_SIZE", 0)))  # fmt: skip
    hosts = tuple(f"host {number} of {num_hosts}" for number in range(1, min(num_hosts, MAX_HOSTS) + 1))
    return LaunchInfo(
        _checked(
            DistInfo(
                rank=rank,
                world_size=size,
                local_rank=int(env.get("LOCAL_RANK") or 0),
                local_size=int(local_size),
                host=host,
                hosts=hosts,
            )
        )
    )


def _told(names: tuple[str, str, str, str], env: Environment) -> _Told | None:
    """What variables of these names say; None where rank or size is missing."""
    rank, size, local_rank, local_size = (
        next((int(env[name]) for name in choice.split() if env.get(name)), None) for choice in names
    )
    return None if rank is None or size is None else _Told(rank, size, local_rank, local_size)


def _told_by_mpi(env: Environment) -> Iterator[_Told]:
    prefixes = dict.fromkeys(name.partition("_COMM_WORLD_")[0] for name in env if _COMM_WORLD.fullmatch(name))
    ends = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    of_worlds = [tuple(f"{prefix}_COMM_WORLD_{end}" for end in ends) for prefix in prefixes]
    for names in (*of_worlds, _JSRUN, _PMI):
        if (told := _told(names, env)) is not None:  # type: ignore[arg-type]
            yield told


def _of_mpi(env: Environment) -> LaunchInfo | None:
    """`mpirun`, which tells of no address. Under `srun --mpi=pmi2` and Flux, these know what is on this host."""
    told = list(_told_by_mpi(env))
    if not told:
        return None
    first = told[0]
    whole = next(
        (one for one in told if one.local_rank is not None and (one.rank, one.size) == (first.rank, first.size)), None
    )
    if whole is not None:
        return _placed(whole)
    for other in (_of_flux(env), _of_slurm(env)):
        if other is not None and (other.dist_info.rank, other.dist_info.world_size) == (first.rank, first.size):
            return other
    if first.size > 1 and "LOCAL_RANK" not in env:
        raise UserError(
            f"this is process {first.rank} of {first.size} of an MPI job that does not tell which one of its host it is; set "
            "LOCAL_RANK and LOCAL_SIZE for each process"
        )
    return _placed(
        replace(first, local_rank=int(env.get("LOCAL_RANK", 0)), local_size=int(env.get("LOCAL_SIZE") or first.size))
    )


def _of_flux(env: Environment) -> LaunchInfo | None:
    """A task of a Flux job, whose hosts have tasks by turns: as many each, or one less."""
    told = _told(_FLUX, env)
    if told is None:
        return None
    per_host = -(-told.size // max(int(env.get("FLUX_JOB_NNODES", 1)), 1))
    return _placed(replace(told, local_size=max(per_host, (told.local_rank or 0) + 1)))


def _placed(told: _Told) -> LaunchInfo:
    return LaunchInfo(
        _checked(
            DistInfo(
                rank=told.rank,
                world_size=told.size,
                local_rank=told.local_rank or 0,
                local_size=told.size if told.local_size is None else told.local_size,
            )
        )
    )


def _require_alone(env: Environment) -> None:
    """Raise UserError where a variable tells of other processes, and none of all that would be needed."""
    # A shell that srun has started is process 0 of one, whatever PMI calls it.
    of_shell = ("PMIX_RANK", "PMI_RANK") if "SLURM_JOB_ID" in env else ()
    for name, value in env.items():
        is_rank = _RANK.fullmatch(name) or _LATER.fullmatch(name)
        lowest = int(name in of_shell or _LATER.fullmatch(name) is not None)
        if value and ((_SIZE.fullmatch(name) and int(value) > 1) or (is_rank and int(value) >= lowest)):
            raise UserError(
                f"{name}={value} tells of several processes, but nothing tells which of how many this one is; set RANK, "
                f"WORLD_SIZE and LOCAL_RANK for each process, or unset {name}"
            )


def _require_in_range(told: _Told) -> _Told:
    if not 0 <= told.rank < told.size:
        raise ValueError(f"rank {told.rank} of {told.size}")
    return told


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
        if int(last or first) - int(first) >= MAX_HOSTS:
            raise ValueError(f"{item[:60]!r} are more than {MAX_HOSTS:,} hosts")
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
        counts += [int(match[1])] * min(int(match[2] or 1), MAX_HOSTS)
    return counts
