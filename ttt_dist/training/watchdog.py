"""A thread beside each process that ends the run when nothing moves: it dumps all stacks and says which rank is behind.

Each process tells the rendezvous store what it begins (`mark`), and its thread tells it now and then that the process is
alive. A collective that waits for ever looks alike on all processes; the marks and the signs of life tell them apart: a
rank that is stuck is behind the others, one that died or lost its network is silent. Processes end themselves with status
76, because a thread that waits in a collective cannot be interrupted.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from ttt_dist.launch.rendezvous import STORE_TIMEOUT, is_lost_connection, ranges, run_store
from ttt_dist.training.out_of_memory import out_of_memory_told
from ttt_dist.util.console import print_error
from ttt_dist.util.errors import LostProcessError, StopRequestedError

if TYPE_CHECKING:
    from ttt_dist.training.plan import TrainPlan

logger = logging.getLogger(__name__)

GRACE_S = 5.0  # between a dump and the end of its process: the others are about to dump theirs


class Watchdog:
    """Watches this process; made by all, with the rendezvous of the environment (MASTER_ADDR, MASTER_PORT)."""

    def __init__(self, folder: Path, limit_s: float, on_fault: Callable[[int, str], None]) -> None:
        """Stacks go to `folder`/rank-00000.stacks.txt; `on_fault` hears the step and what is said of it, on rank 0."""
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.stacks = folder / f"rank-{self.rank:05d}.stacks.txt"
        self.limit_s = limit_s
        self._on_fault = on_fault
        self._step, self._what, self._since = 0, "start", time.monotonic()
        self._number = 0
        self._store = run_store()
        if self._store is not None:
            self._store.set(f"name/{self.rank}", socket.gethostname())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def mark(self, step: int, what: str, limit_s: float) -> None:
        """This process begins `what` ("reading data") of a step, which may take so long. All processes mark the same things."""
        self._number += 1
        self._step, self._what, self.limit_s, self._since = step, f"step {step}: {what}", limit_s, time.monotonic()
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # see _live
                self._store.set(f"mark/{self.rank}", f"{self._number} {self._what}")

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def explain(self) -> str:
        """Which ranks are silent, or else behind the others; takes some seconds. Empty for a process that is alone."""
        if self.world_size == 1:
            return ""
        answer = [f"rank 0 ({os.environ['MASTER_ADDR']}) cannot be reached from {socket.gethostname()}"]
        asking = threading.Thread(target=self._ask, args=(answer,), daemon=True)  # a store may never answer
        asking.start()
        end = time.monotonic() + 2 * self._wait_s() + 2 * STORE_TIMEOUT.total_seconds()
        while asking.is_alive() and time.monotonic() < end:
            self._live()  # the others are asking too
            asking.join(self._interval_s())
        return answer[-1]

    @contextlib.contextmanager
    def faults_told(self, plan: "TrainPlan") -> Iterator[None]:
        """Tell `on_fault` of what ends the work inside, but for stops; a broken connection becomes a LostProcessError.

        A device without memory becomes a UserError, see `out_of_memory_told`.
        """
        try:
            with out_of_memory_told(plan, lambda: self._what):
                yield
        except StopRequestedError:
            raise
        except RuntimeError as error:
            if not is_lost_connection(error):
                self._tell(repr(error))
                raise
            logger.exception("a collective failed")
            lost = LostProcessError(f"{self._what}: lost a connection; {self.explain()}")
            self._tell(str(lost))
            raise lost from error
        except Exception as error:
            self._tell(str(error))
            raise

    def _tell(self, message: str) -> None:
        if self.rank == 0:
            self._on_fault(self._step, message)

    def _watch(self) -> None:
        while not self._closed.wait(self._interval_s()):
            self._live()
            late = time.monotonic() - self._since
            if late > self.limit_s:
                self._end(late)

    def _interval_s(self) -> float:
        return min(max(self.limit_s / 20, 0.2), 5.0)

    def _wait_s(self) -> float:
        """In so long a time a process that lives gives a sign."""
        return 3 * self._interval_s()

    def _live(self) -> None:
        """Give a sign of life. `set` waits for no answer, and so never blocks."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the store has gone: the main thread will find out
                self._store.set(f"life/{self.rank}", str(time.monotonic()))

    def _ask(self, answer: list[str]) -> None:
        with contextlib.suppress(RuntimeError, LostProcessError):
            store = run_store()
            assert store is not None
            answer.append(explained_once(store, self.world_size, self._wait_s()))

    def _end(self, late: float) -> None:
        with contextlib.suppress(OSError), self.stacks.open("w") as file:  # a full disk must not keep it from its end
            file.write(f"rank {self.rank} on {socket.gethostname()}: {late:.0f} s in {self._what}\n")
            faulthandler.dump_traceback(file)
        who = self.explain()
        message = (
            f"{self._what} has taken more than {self.limit_s:g} s{'; ' + who if who else ''}; stacks: {self.stacks}"
        )
        self._tell(message)
        print_error(message)
        end = time.monotonic() + max(GRACE_S, self._wait_s())
        while time.monotonic() < end and not self._closed.wait(self._interval_s()):
            self._live()
        os._exit(LostProcessError.status)


def explained_once(store: dist.Store, world_size: int, wait_s: float) -> str:
    """What `explained` finds, asked by the first process that wants to know and told to the others: of a thousand that meet the
    same fault at once, each makes two requests."""
    if store.add("explained/asked", 1) > 1:
        # Where the one that asks is itself lost, each finds out by itself.
        with contextlib.suppress(RuntimeError):
            store.wait(["explained"], timedelta(seconds=wait_s) + STORE_TIMEOUT / 2)
            return store.get("explained").decode()
    found = explained(store, world_size, wait_s)
    store.set("explained", found)
    return found


def explained(store: dist.Store, world_size: int, wait_s: float) -> str:
    """Which ranks give no sign of life for `wait_s`, or else which are behind; eight requests, however many ranks."""
    ranks = range(world_size)
    before = _values(store, "life", ranks)
    time.sleep(wait_s)
    silent = [rank for rank, value in enumerate(_values(store, "life", ranks)) if value == before[rank]]
    if silent:
        where = _hosts_of(store, silent)
        return f"no sign of life from rank(s) {ranges(silent)}{' on ' + where if where else ''}"
    marks = [value.partition(" ") for value in _values(store, "mark", ranks)]
    numbers = [int(number or 0) for number, _, _ in marks]
    behind = [rank for rank, number in enumerate(numbers) if number == min(numbers)]
    if len(behind) == world_size:
        return "all ranks are as far as each other"
    where = _hosts_of(store, behind)
    return f"rank(s) {ranges(behind)} still in {marks[behind[0]][2] or 'the start'}{', on ' + where if where else ''}"


def _hosts_of(store: dist.Store, ranks: Sequence[int]) -> str:
    return ", ".join(name for name in dict.fromkeys(_values(store, "name", ranks)) if name)


def _values(store: dist.Store, kind: str, ranks: Sequence[int]) -> list[str]:
    """What these ranks have told; nothing of those that have told nothing yet, which are then asked for one by one."""
    keys = [f"{kind}/{rank}" for rank in ranks]
    if store.check(keys):
        return [value.decode() for value in store.multi_get(keys)]
    return [store.get(key).decode() if store.check([key]) else "" for key in keys]
