"""Reading ahead: threads read what comes next while the device works on what was read before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def read_ahead(
    items: Sequence[Item],
    read: Callable[[Item], Result],
    size: Callable[[Result], int],
    most: int,
    threads: int,
    start: Callable[[], None],
) -> Iterator[Iterator[Result]]:
    """Gives an iterator of `read` of each item, in their order, whatever thread is first; an error comes at its place.

    A thread begins the next item while results of less than `most` (by `size`) wait to be taken, so that at most that and
    one result per thread lie in memory. Whose turn it is to be taken is read in any case: nothing can block. `start` is
    called in each thread first.
    """
    room = threading.Condition()
    waiting = taken = 0
    left = False

    def work(index: int) -> Result | None:
        nonlocal waiting
        with room:
            room.wait_for(lambda: waiting < most or index == taken or left)
            if left:
                return None
        result = read(items[index])
        with room:
            waiting += size(result)
        return result

    def results() -> Iterator[Result]:
        nonlocal waiting, taken
        while futures:
            result = futures.popleft().result()
            assert result is not None
            with room:
                waiting -= size(result)
                taken += 1
                room.notify_all()
            yield result

    pool = ThreadPoolExecutor(threads, "read ahead", start)
    futures = deque(pool.submit(work, index) for index in range(len(items)))
    try:
        yield results()
    finally:
        with room:
            left = True
            room.notify_all()
        pool.shutdown(cancel_futures=True)
