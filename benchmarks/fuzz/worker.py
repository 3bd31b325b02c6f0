"""One process that reads mutated inputs, and what it finds of each."""

import os
import re
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fuzz.entrance import Entrance
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_named

LOSS, TRACEBACK, ABORT, HANG, MEMORY = "silent_losses", "tracebacks", "aborts", "hangs", "over_1gb"
FAULTS = (TRACEBACK, ABORT, HANG, MEMORY, LOSS)
MOST = 2**30
"""Bytes that a process may grow by over one input."""
SHIELD = 6 * 2**30
"""Of address space beyond what it has at its start: the machine outlives what is asked for in vain."""
LINE = 4000  # letters of a message at most
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """What became of an input that was neither read nor refused in a line."""

    entrance: str
    number: int
    kind: str
    """One of FAULTS."""
    symptom: str
    """A line."""
    details: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Of faults that look like one."""
        return self.entrance, self.kind, self.symptom


def trial(entrance: Entrance, folder: Path) -> tuple[str, str, str] | None:
    """(kind, symptom, details) where the folder is neither read nor refused in a line."""
    try:
        counted = entrance.read(folder)
    except UserError as error:
        return _as_line(str(error))
    except MemoryError:
        return MEMORY, _place(), traceback.format_exc()
    except (Exception, SystemExit):
        return TRACEBACK, _place(), traceback.format_exc()
    if counted is not None and counted.is_lossy:
        return LOSS, "items neither given nor counted", str(counted)
    return None


def _as_line(message: str) -> tuple[str, str, str] | None:
    """The fault of a message that is no line for a terminal."""
    if len(message) <= LINE and not CONTROL.search(message):
        return None
    what = "longer than a line" if len(message) > LINE else "with control characters"
    return TRACEBACK, f"a message {what}", f"{message[:200]!r}\n{traceback.format_exc()[-3000:]}"


def _place() -> str:
    """The error's kind and the innermost place of ours."""
    _, error, trace = sys.exc_info()
    frames = [frame for frame in traceback.extract_tb(trace) if "site-packages" not in frame.filename]
    ours = [
        frame for frame in frames if any(f"/{part}/" in frame.filename for part in ("ttt_dist", "data_prep", "tools"))
    ]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} at {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno}"


@dataclass(frozen=True)
class Batch:
    """Inputs of one entrance, by number."""

    entrance: str
    start: int
    count: int


def work(connection: Connection, current: Any, source: str, seeds: Path, scratch: Path, seed: int) -> None:
    """A process's life: batches in; faults, and at last the time it took, out. `current` holds the number being read."""
    _go_quiet(scratch)
    entrances = load_named(source, "entrances")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _address_space() + SHIELD
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(("ready", 0.0))
    while True:
        batch: Batch = connection.recv()
        start = time.monotonic()
        for fault in _batch(entrances[batch.entrance], batch, current, seeds / batch.entrance, scratch, seed):
            connection.send(("fault", asdict(fault)))
        current.value = -1
        connection.send(("done", time.monotonic() - start))


def _batch(entrance: Entrance, batch: Batch, current: Any, whole: Path, scratch: Path, seed: int) -> Iterator[Fault]:
    os.ftruncate(2, 0)
    folder = scratch / "input"
    _copy(whole, folder)
    entrance.read(folder)  # what is loaded at the first reading is not the first input's
    for number in range(batch.start, batch.start + batch.count):
        if entrance.is_written:
            _copy(whole, folder)
        name, content = entrance.input(whole, seed, number)
        (folder / name).write_bytes(content)
        current.value = number
        before = _peak()
        found = trial(entrance, folder)
        if found is None and _peak() > before + MOST:
            found = MEMORY, f"{(_peak() - before) / 2**30:.1f} GB more", ""
        if found is not None:
            yield Fault(entrance.name, number, *found)
        if not entrance.is_written:
            shutil.copyfile(whole / name, folder / name)


def _copy(whole: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)


def _peak() -> int:
    """Most memory that this process has held. `ru_maxrss` begins at that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _go_quiet(scratch: Path) -> None:
    """What is written to the terminal goes into a file, libraries' complaints too: an abort's last words are there."""
    said = os.open(scratch / "said", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
