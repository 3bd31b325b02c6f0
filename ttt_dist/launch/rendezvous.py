"""Where the processes of a run meet: a store that rank 0 keeps, in which each says that it has come.

torch would wait for the others and, in the end, say only that it did. Here rank 0 tells which ranks have not come.
"""

import os
import random
import resource
import socket
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from ttt_dist.launch.launchers import PORTS, DistInfo
from ttt_dist.util.errors import LostProcessError, UserError, first_line

VERDICT, HEARD = "verdict", "heard"
COMPLETE = "complete"
RETRY_S, POLL_S = 0.5, 0.1
STORE_TIMEOUT = timedelta(seconds=5)
PATIENT_TIMEOUT = timedelta(seconds=30)  # a busy machine may stand still for longer than an answer may take
MOST_HANDLES = 2**16
HANDLES, HANDLES_OF_RANK = 256, 3  # of rank 0: its own, and each rank's connections to meet, watch and save
LAST_WORD_S = 10.0  # rank 0's verdict may take so long to arrive, and it stays so long for the others to hear it


class IncompleteError(LostProcessError):
    """Some processes have not come: those that have all raise it alike."""

    is_agreed = True


def rendezvous(dist_info: DistInfo, address: str, port: int, timeout_s: float) -> dist.Store:
    """The store of the run once all its processes have come; collective.

    Raises LostProcessError where some have not come within `timeout_s`, or where rank 0 cannot be reached; UserError where
    the address or the port will not do.
    """
    deadline = time.monotonic() + timeout_s
    where = f"{address}:{port}"
    try:
        # torchrun keeps the store itself, over all its restarts.
        is_host = dist_info.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _allow_handles(HANDLES + HANDLES_OF_RANK * dist_info.world_size if is_host else 0)
        server = _open(port, timeout_s) if is_host else _reach(address, port, deadline)
        store = _of_this_start(server, dist_info.world_size)
        _register(store, dist_info, where)
        if dist_info.is_first:
            _await_all(store, dist_info, deadline, timeout_s)
        else:
            _await_verdict(store, deadline)
    except dist.DistError as error:
        raise LostProcessError(_gone(where, error)) from None
    return store


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective has failed because another process has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _gone(where: str, error: dist.DistError) -> str:
    return f"rank 0 at {where} has gone ({first_line(error)}); its own message says why"


def _of_this_start(server: dist.TCPStore, world_size: int) -> dist.Store:
    """Without what processes have said before torchrun has started them again."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"{world_size} processes, restart {restart}", server)


def _allow_handles(needed: int) -> None:
    """Raise this process's limit of open files as far as the host allows; most begin with 1,024.

    A store that has none left resets every further connection: to those that come last it looks like no store at all.
    Raises UserError where the host allows fewer than `needed`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST_HANDLES if hard == resource.RLIM_INFINITY else min(hard, MOST_HANDLES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        raise UserError(
            f"{socket.gethostname()}: a process may open {allowed:,} files, and rank 0 needs {needed:,} for so many processes; "
            "raise the hard limit there (`ulimit -Hn`; of SLURM's jobs LimitNOFILE of slurmd)"
        )


def _open(port: int, timeout_s: float) -> dist.TCPStore:
    """Rank 0's own store."""
    timeout = timedelta(seconds=timeout_s)
    try:
        return dist.TCPStore("localhost", port, is_master=True, timeout=timeout, wait_for_workers=False)
    except dist.DistNetworkError as error:
        reason = first_line(error).rpartition("message: ")[2]
        raise UserError(
            f"port {port} of {socket.gethostname()} cannot be opened ({reason}), perhaps another run has it; "
            "give another one with --master_port, or with MASTER_PORT where the launcher has no such option"
        ) from None


def _reach(address: str, port: int, deadline: float) -> dist.TCPStore:
    """A connection to rank 0's store, which may be there only later."""
    try:
        socket.getaddrinfo(address, port)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR={address}: {error.strerror} on {socket.gethostname()}; set it to an address of rank 0's host"
        ) from None
    while True:
        try:
            socket.create_connection((address, port), timeout=max(deadline - time.monotonic(), 1.0)).close()
            break
        except OSError as error:
            if time.monotonic() + RETRY_S > deadline:
                raise LostProcessError(
                    f"rank 0 at {address}:{port} cannot be reached from {socket.gethostname()} "
                    f"({error.strerror or error}); its own message says why, or that host is down"
                ) from None
            time.sleep(RETRY_S)
    return _connect(address, port, max(deadline - time.monotonic(), 1.0))


def _connect(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """In a thread of its own, as torch waits for ever for an answer where it is no store that listens."""
    results: list[dist.TCPStore | dist.DistError] = []

    def connect() -> None:
        try:
            timeout = timedelta(seconds=timeout_s)
            results.append(dist.TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False))
        except dist.DistError as error:
            results.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(timeout_s)
    result = results[0] if results else None
    if isinstance(result, dist.TCPStore):
        return result
    reason = "no answer" if result is None else first_line(result)
    raise UserError(
        f"what listens at {address}:{port} is not rank 0 of a run ({reason}); "
        "give the run another --master_port, or MASTER_PORT where the launcher has no such option"
    )


def _register(store: dist.Store, dist_info: DistInfo, where: str) -> None:
    """Say that this rank has come, and from which host."""
    if store.add(f"came/{dist_info.rank}", 1) > 1:
        raise UserError(
            f"rank {dist_info.rank} comes to {where} for the second time: two runs share this port; "
            "give one of them another --master_port or MASTER_PORT"
        )
    store.set(f"host/{dist_info.rank}", str(dist_info.host))


def _await_all(store: dist.Store, dist_info: DistInfo, deadline: float, timeout_s: float) -> None:
    """Rank 0 waits for all ranks and tells them who is missing."""
    keys = [f"host/{rank}" for rank in range(dist_info.world_size)]
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    came = [rank for rank, key in enumerate(keys) if store.check([key])]
    missing = sorted(set(range(dist_info.world_size)) - set(came))
    if not missing:
        store.set(VERDICT, COMPLETE)
        return
    seen = {int(store.get(f"host/{rank}")) for rank in came}
    away = [name for number, name in enumerate(dist_info.hosts) if number not in seen]
    verdict = (
        f"rank(s) {ranges(missing)} of {dist_info.world_size} have not come within {timeout_s:g} s"
        f"{', none of ' + ', '.join(away) if away else ''}; see why they did not start, then start the run again"
    )
    store.set(VERDICT, verdict)
    _wait_for_count(store, HEARD, len(came) - 1)
    raise IncompleteError(verdict)


def _await_verdict(store: dist.Store, deadline: float) -> None:
    store.wait([VERDICT], timedelta(seconds=max(deadline - time.monotonic(), 0) + LAST_WORD_S))
    verdict = store.get(VERDICT).decode()
    if verdict != COMPLETE:
        store.add(HEARD, 1)
        raise IncompleteError(verdict)


def _wait_for_count(store: dist.Store, key: str, count: int) -> None:
    """Until `key` is at `count`, or for LAST_WORD_S."""
    end = time.monotonic() + LAST_WORD_S
    while store.add(key, 0) < count and time.monotonic() < end:
        time.sleep(POLL_S)


def run_store(timeout: timedelta = STORE_TIMEOUT) -> dist.Store | None:
    """A connection of its own, for one thread, to the store in which the run's processes have met; None for one that is alone.

    What is set there outlives the process that did, as long as rank 0's lives. A value may take `timeout` to come. Raises
    LostProcessError where rank 0 has gone.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=PATIENT_TIMEOUT, wait_for_workers=False)
    except dist.DistError as error:
        raise LostProcessError(_gone(f"{address}:{port}", error)) from None
    store.set_timeout(timeout)
    return _of_this_start(store, world_size)


def ranges(numbers: list[int]) -> str:
    """Ascending numbers in short: 0, 2-5, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def free_port(count: int = 1) -> int:
    """A port of this machine that nobody listens on, the first of `count`, for a run that shares the machine with others.

    No connection is given it in the meantime: it is below the ports of these.
    """
    while True:
        first = random.SystemRandom().randrange(PORTS.start, PORTS.stop - count + 1)
        if all(map(_is_free, range(first, first + count))):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True
