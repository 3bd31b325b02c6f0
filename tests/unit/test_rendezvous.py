"""How processes meet: who is missing is named, and what cannot be the run's own meeting point is told apart from it."""

import resource
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from ttt_dist.launch import rendezvous as module
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.launch.rendezvous import IncompleteError, free_port, ranges, rendezvous, run_store
from ttt_dist.util.errors import LostProcessError, UserError

HOSTS = ("alpha", "beta")


def meeting(
    ranks: list[int], port: int, timeout_s: float, world_size: int = 4, address: str = "127.0.0.1"
) -> list[BaseException | dist.Store]:
    """What `rendezvous` comes to on each of `ranks`, of which two run on each host, all at once in threads of this process."""
    results: dict[int, BaseException | dist.Store] = {}

    def come(order: int, rank: int) -> None:
        try:
            place = DistInfo(
                rank=rank, world_size=world_size, local_rank=rank % 2, local_size=2, host=rank // 2, hosts=HOSTS
            )
            results[order] = rendezvous(place, address, port, timeout_s)
        except BaseException as error:
            results[order] = error

    threads = [threading.Thread(target=come, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 20)
    return [results[order] for order in range(len(ranks))]


def test_all_come() -> None:
    stores = meeting([3, 0, 2, 1], free_port(), 20)
    assert all(isinstance(store, dist.Store) for store in stores), stores
    stores[0].set("said", "by rank 3")  # type: ignore[union-attr]
    assert stores[3].get("said") == b"by rank 3"  # type: ignore[union-attr]


def test_a_late_first_rank_is_waited_for() -> None:
    port, early = free_port(), list[object]()
    first = threading.Thread(target=lambda: early.extend(meeting([1], port, 20, world_size=2)))
    first.start()
    time.sleep(1.0)  # an early start, not a condition: it must come out right whatever comes first
    late = meeting([0], port, 20, world_size=2)  # kept: the store lives here
    first.join()
    assert all(isinstance(store, dist.Store) for store in early + late), early + late


@pytest.fixture
def handles() -> Iterator[int]:
    """The hard limit of open files, which all of this process's limits are put back to."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_may_be_open_as_the_host_allows(handles: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, handles))
    stores = meeting([1, 0, 2, 3], free_port(), 20)
    assert all(isinstance(store, dist.Store) for store in stores), stores
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 512


def test_a_host_that_allows_too_few_open_files_for_all_connections_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2048, 2048))
    (failure,) = meeting([0], free_port(), 1.0, world_size=1024)
    assert isinstance(failure, UserError)
    assert f"{socket.gethostname()}: a process may open 2,048 files, and rank 0 needs 3,328" in str(failure)
    assert "LimitNOFILE" in str(failure)


def test_a_further_connection_is_waited_for_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    port, servers = free_port(), list[dist.TCPStore]()

    def open_late() -> None:
        time.sleep(2.0)
        servers.append(dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    opening = threading.Thread(target=open_late)
    opening.start()
    store = run_store(timedelta(seconds=0.3))
    opening.join()
    assert store is not None
    with pytest.raises(dist.DistStoreError):  # an answer is not waited for so long
        store.get("never set")


def test_what_was_said_before_torchrun_has_started_the_processes_again_is_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)  # torchrun keeps it
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    stores = []
    for restart in ("0", "1", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        stores.append(run_store())
    before, *now = (store for store in stores if store is not None)
    before.set("explained", "no sign of life from rank(s) 1")
    assert not now[0].check(["explained"])
    now[0].set("explained", "all ranks are as far as each other")
    assert now[1].multi_get(["explained"]) == [b"all ranks are as far as each other"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([0, 1], "rank(s) 2-3 of 4 have not come within 1 s, none of beta; "),
        ([0, 1, 3], "rank(s) 2 of 4 have not come within 1 s; "),
        ([0], "rank(s) 1-3 of 4 have not come within 1 s, none of beta; "),
    ],
)
def test_who_has_not_come_is_named_by_all_who_have(ranks: list[int], said: str) -> None:
    """By all: the console then shows what rank 0 says, once."""
    begin = time.monotonic()
    results = meeting(ranks, free_port(), 1)
    assert time.monotonic() - begin < 10
    for result in results:
        assert isinstance(result, IncompleteError)
        assert str(result).startswith(said)
        assert (result.status, result.is_agreed) == (76, True)


def test_rank_0_that_never_comes() -> None:
    port = free_port()
    (result,) = meeting([1], port, 1)
    assert isinstance(result, LostProcessError)
    assert f"rank 0 at 127.0.0.1:{port} cannot be reached" in str(result)


@pytest.fixture
def somebody_else() -> Iterator[int]:
    """The port of a server that says nothing."""
    server = socket.socket()
    server.bind(("", 0))
    server.listen()
    yield server.getsockname()[1]
    server.close()


def test_a_port_in_use(somebody_else: int) -> None:
    (result,) = meeting([0], somebody_else, 1)
    assert isinstance(result, UserError) and result.status == 1
    assert (
        f"port {somebody_else} of " in str(result) and "--master_port" in str(result) and "MASTER_PORT" in str(result)
    )
    assert "\n" not in str(result)
    (other,) = meeting([1], somebody_else, 1)  # it finds somebody there, who does not answer
    assert isinstance(other, UserError) and "is not rank 0 of a run (no answer)" in str(other)


def test_a_free_port_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there, and no connection is given it: it lies below those that the system gives away."""
    first_given_away, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert free_port() < int(first_given_away)
    with socket.socket() as server:
        taken = free_port(3)
        server.bind(("127.0.0.1", taken))
        monkeypatch.setattr(module, "PORTS", range(taken, taken + 3))
        assert {free_port() for _ in range(40)} == {taken + 1, taken + 2}
        assert free_port(2) == taken + 1


def test_two_runs_at_one_port() -> None:
    """The second run's first rank finds the port taken; its others must not pass for the first run's."""
    port, first = free_port(), list[object]()
    run = threading.Thread(target=lambda: first.extend(meeting([0, 1], port, 20, world_size=2)))
    run.start()
    run.join()
    results = meeting([0, 1], port, 5, world_size=2)
    assert all(isinstance(store, dist.Store) for store in first), first
    assert "cannot be opened" in str(results[0])
    assert "rank 1 comes to" in str(results[1]) and "for the second time" in str(results[1])


def test_an_address_that_nobody_knows() -> None:
    (result,) = meeting([1], free_port(), 5, address="no-such-host.invalid")
    assert isinstance(result, UserError) and result.status == 1
    assert str(result).startswith("MASTER_ADDR=no-such-host.invalid: ")


def test_ranges() -> None:
    assert ranges([0, 2, 3, 4, 7]) == "0, 2-4, 7"
    assert ranges([]) == ""
