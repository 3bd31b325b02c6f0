"""What a watchdog says of the others. (That it ends a run which hangs is shown in tests/distributed/test_faults.py.)"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist

from ttt_dist.launch.rendezvous import free_port
from ttt_dist.training.watchdog import _explained

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
        assert _explained(store, 4, WAIT_S) == "no sign of life from rank(s) 1, 3"


def test_the_one_that_is_behind_is_named_with_what_it_does(store: dist.TCPStore) -> None:
    for rank, mark in enumerate(("10 step 5: forward and backward", "9 step 5: reading data", "10 step 5: forward")):
        store.set(f"mark/{rank}", mark)
    with alive(store, [0, 1, 2]):
        assert _explained(store, 3, WAIT_S) == "rank(s) 1 still in step 5: reading data"
        store.set("mark/1", "10 step 5: forward and backward")
        assert _explained(store, 3, WAIT_S) == "all ranks are as far as each other"


def test_a_rank_that_never_marked_anything_is_behind(store: dist.TCPStore) -> None:
    store.set("mark/0", "1 step 1: reading data")
    with alive(store, [0, 1]):
        assert _explained(store, 2, WAIT_S) == "rank(s) 1 still in the start"


def test_many_ranks_are_told_in_short(store: dist.TCPStore) -> None:
    with alive(store, [0]):
        said = _explained(store, 20, WAIT_S)
    assert said == "no sign of life from rank(s) 1-19"
