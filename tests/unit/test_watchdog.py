"""What a watchdog says of the others. (That it ends a run which hangs is shown in tests/distributed/test_faults.py.)"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from ttt_dist.launch.rendezvous import free_port
from ttt_dist.training import watchdog
from ttt_dist.training.watchdog import explained, explained_once

WAIT_S = 0.4


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", free_port(), is_master=True, timeout=timedelta(seconds=5), wait_for_workers=False)


@contextmanager
def alive(store: dist.TCPStore, ranks: list[int]) -> Iterator[None]:
    """These ranks give signs of life, the others do not."""
    end = threading.Event()

    def live() -> None:
        number = 0
        while not end.wait(WAIT_S / 10):
            number += 1
            for rank in ranks:
                store.set(f"life/{rank}", str(number))

    thread = threading.Thread(target=live)
    thread.start()
    yield
    end.set()
    thread.join()


def test_the_silent_ones_are_named_whatever_the_others_do(store: dist.TCPStore) -> None:
    for rank in range(4):
        store.set(f"life/{rank}", "0")
        store.set(f"mark/{rank}", f"{7 - rank} step 3: forward and backward")
    with alive(store, [0, 2]):
        assert explained(store, 4, WAIT_S) == "no sign of life from rank(s) 1, 3"


def test_the_one_that_is_behind_is_named_with_what_it_does(store: dist.TCPStore) -> None:
    for rank, mark in enumerate(("10 step 5: forward and backward", "9 step 5: reading data", "10 step 5: forward")):
        store.set(f"mark/{rank}", mark)
    with alive(store, [0, 1, 2]):
        assert explained(store, 3, WAIT_S) == "rank(s) 1 still in step 5: reading data"
        store.set("mark/1", "10 step 5: forward and backward")
        assert explained(store, 3, WAIT_S) == "all ranks are as far as each other"


def test_a_rank_that_never_marked_anything_is_behind(store: dist.TCPStore) -> None:
    store.set("mark/0", "1 step 1: reading data")
    with alive(store, [0, 1]):
        assert explained(store, 2, WAIT_S) == "rank(s) 1 still in the start"


def test_many_ranks_are_told_in_short(store: dist.TCPStore) -> None:
    with alive(store, [0]):
        said = explained(store, 20, WAIT_S)
    assert said == "no sign of life from rank(s) 1-19"


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, store: dist.Store) -> None:
        self.store, self.requests = store, 0

    def __getattr__(self, name: str) -> Any:
        self.requests += 1
        return getattr(self.store, name)


def test_a_thousand_ranks_ask_once(store: dist.TCPStore) -> None:
    size = 1000
    for rank in range(size):
        store.set(f"life/{rank}", "0")
        store.set(f"mark/{rank}", "1 step 1: reading data")
        store.set(f"name/{rank}", f"host{rank // 8}")
    stores = [Counting(store) for _ in range(4)]
    with alive(store, [rank for rank in range(size) if rank != 7]):
        told = [explained_once(one, size, WAIT_S) for one in stores]  # type: ignore[arg-type]
    assert told == ["no sign of life from rank(s) 7 on host0"] * 4
    assert [one.requests for one in stores] == [8, 3, 3, 3]


def test_who_waits_for_one_that_is_lost_asks_by_itself(store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STORE_TIMEOUT", timedelta(seconds=0.2))
    store.add("explained/asked", 1)  # and then its machine went down
    store.set("life/0", "0")
    store.set("life/1", "0")
    with alive(store, [0]):
        assert explained_once(store, 2, WAIT_S) == "no sign of life from rank(s) 1"
