"""Processes that read inputs, watched: one that dies or hangs is replaced, and its batch goes on behind that input."""

import multiprocessing as mp
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.fuzz.worker import ABORT, HANG, MEMORY, Batch, Fault, work

BATCH_S = 0.5  # of a batch, by the entrance's speed so far
LARGEST = 4000
HANG_S = 30.0  # for one input


class Child:
    """A process and what it is doing."""

    def __init__(self, source: str, seeds: Path, scratch: Path, seed: int) -> None:
        context = mp.get_context("forkserver")
        # Imports are half of the life of a process that dies of its tenth input.
        context.set_forkserver_preload([work.__module__, source.partition(":")[0]])
        self.scratch = Path(tempfile.mkdtemp(dir=scratch))
        self.connection, theirs = context.Pipe()
        self.current: Any = context.Value("q", -1, lock=False)
        arguments = (theirs, self.current, source, seeds, self.scratch, seed)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.batch: Batch | None = None
        self.begun = 0.0
        self.seen, self.since = -1, time.monotonic()

    def take(self, batch: Batch) -> None:
        self.batch, self.begun = batch, time.monotonic()
        self.connection.send(batch)

    def hangs(self, most: float) -> bool:
        """Whether it has been at one input for too long."""
        if self.batch is None or self.current.value != self.seen:
            self.seen, self.since = self.current.value, time.monotonic()
        return self.batch is not None and self.seen >= 0 and time.monotonic() - self.since > most

    def last_words(self) -> str:
        said = self.scratch / "said"
        return said.read_bytes()[-2000:].decode("utf8", "replace") if said.exists() else ""

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Campaign:
    """Shares the time out over the entrances; `on_fault` is told of every fault.

    `source` is where the processes find the entrances, `package.module:NAME` of a mapping by name; `seeds` has the whole
    files of each in a folder of that name.
    """

    hang_s = HANG_S

    def __init__(
        self, names: list[str], source: str, seeds: Path, scratch: Path, seed: int, on_fault: Callable[[Fault], None]
    ) -> None:
        self.names, self.on_fault = names, on_fault
        self._process = (source, seeds, scratch, seed)
        self.inputs: Counter[str] = Counter()
        """Read so far, by entrance."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._next: Counter[str] = Counter()
        self._left: defaultdict[str, list[Batch]] = defaultdict(list)  # by processes that died

    def run(self, seconds: float, num_workers: int) -> None:
        """Read mutated inputs for so long; a process that dies or hangs is replaced."""
        children = [Child(*self._process) for _ in range(num_workers)]
        started: float | None = None
        try:
            while started is None or time.monotonic() < started + seconds:
                ready = wait([child.connection for child in children], timeout=0.5)
                for place, child in enumerate(children):
                    if child.connection in ready and self._hear(child):
                        started = started or time.monotonic()  # the imports are not the campaign's
                        child.take(self._new_batch())
                    elif child.hangs(self.hang_s) or not child.process.is_alive():
                        self._bury(child)
                        children[place] = Child(*self._process)
        finally:
            for child in children:
                if child.batch is not None and child.current.value >= 0:
                    self.inputs[child.batch.entrance] += child.current.value - child.batch.start
                child.end()

    def _hear(self, child: Child) -> bool:
        """Take what it says; whether it waits for a batch."""
        try:
            while child.connection.poll():
                kind, value = child.connection.recv()
                if kind == "fault":
                    self.on_fault(Fault(**value))
                    if value["kind"] == MEMORY:  # its peak hides later ones
                        self._renew(child, value["number"])
                        return False
                else:
                    if child.batch is not None:
                        self.inputs[child.batch.entrance] += child.batch.count
                        self._seconds[child.batch.entrance] += value
                        child.batch = None
                    return True
        except (EOFError, ConnectionResetError):
            pass
        return False

    def _renew(self, child: Child, number: int) -> None:
        self._go_on_behind(child, number)
        child.process.kill()
        child.process.join()

    def _bury(self, child: Child) -> None:
        """Note what it died of, or that it hangs."""
        batch, number = child.batch, child.current.value
        if batch is not None:
            if number < batch.start:
                raise RuntimeError(f"{batch.entrance}: whole files cannot be read:\n{child.last_words()}")
            kind, symptom = (HANG, "no end") if child.process.is_alive() else (ABORT, f"exit {child.process.exitcode}")
            self.on_fault(Fault(batch.entrance, number, kind, symptom, child.last_words()))
            self._go_on_behind(child, number)
        elif child.process.exitcode != -9:
            raise RuntimeError(f"a process ended before its first input:\n{child.last_words()}")
        child.end()

    def _go_on_behind(self, child: Child, number: int) -> None:
        batch, child.batch = child.batch, None
        assert batch is not None
        self.inputs[batch.entrance] += number + 1 - batch.start
        self._seconds[batch.entrance] += time.monotonic() - child.begun
        if left := batch.start + batch.count - number - 1:
            self._left[batch.entrance].append(Batch(batch.entrance, number + 1, left))

    def _spent(self, name: str) -> float:
        """Seconds over the root of the speed: one that is four times as quick as another gets twice its time."""
        seconds = self._seconds[name]
        return float(seconds / max(self.inputs[name] / seconds, 1e-3) ** 0.5) if seconds else 0.0

    def _new_batch(self) -> Batch:
        """Of the entrance that had the least of its share: the time grows with the root of the speed, so that slow entrances
        get less of it than quick ones, and yet more than for as many inputs."""
        name = min(self.names, key=lambda name: (self._spent(name), self._next[name], self.names.index(name)))
        if self._left[name]:
            return self._left[name].pop()
        spent = self._seconds[name]
        count = min(max(int(self.inputs[name] / spent * BATCH_S), 1), LARGEST) if spent else 10
        start = self._next[name]
        self._next[name] += count
        return Batch(name, start, count)
