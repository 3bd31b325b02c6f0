"""What a process asks of the file system, counted as it asks: files opened, folders listed, paths looked for, bytes read.

Opens and listings are told by Python's audit events, whoever makes them in whatever way; `os.stat` tells none and is wrapped,
which also catches pathlib and os.path. Bytes are the kernel's own count of this process, without pages of mapped files.
"""

import os
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass
class Calls:
    """What a process has asked of the folder that is watched."""

    opens: int = 0
    listings: int = 0
    stats: int = 0

    def since(self, before: "Calls") -> "Calls":
        """What has come since a copy was taken."""
        return Calls(**{name: value - getattr(before, name) for name, value in asdict(self).items()})


@dataclass
class Counter:
    """Counts from `watch` on, for good: an audit hook cannot be taken away."""

    folder: str = "\0"
    calls: Calls = field(default_factory=Calls)
    _lock: Any = field(default_factory=Lock)

    def watch(self, folder: Path) -> None:
        """Count what concerns `folder`, from zero."""
        _install()
        self.folder, self.calls = os.path.realpath(folder), Calls()

    def add(self, kind: str) -> None:
        """One more; threads may ask at once."""
        with self._lock:
            setattr(self.calls, kind, getattr(self.calls, kind) + 1)

    def now(self) -> Calls:
        """A copy of the numbers."""
        return Calls(**asdict(self.calls))

    def concerns(self, path: Any) -> bool:
        """Whether a path lies in the folder that is watched; a descriptor is none."""
        if type(path) is str and path.startswith(self.folder) and ".." not in path:
            return True  # as most are: a rank's CPU is to be its own, not that of being counted
        try:
            return os.path.abspath(os.fsdecode(path)).startswith(self.folder)
        except TypeError:
            return False


COUNTER = Counter()
EVENTS = {"open": "opens", "os.listdir": "listings", "os.scandir": "listings"}


@cache
def _install() -> None:
    real = os.stat

    def counted(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if COUNTER.concerns(path):
            COUNTER.add("stats")
        return real(path, *arguments, **options)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and COUNTER.concerns(arguments[0]):
            COUNTER.add(EVENTS[event])

    os.stat = counted
    sys.addaudithook(hook)


def bytes_read() -> int:
    """Bytes that this process has read by calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def handles() -> int:
    """Files and the like that this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists


def resident_mb(peak: bool = False) -> float:
    """Memory of this process in MB now, or at its peak since `forget_peak`."""
    key = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Let the peak begin again with what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
