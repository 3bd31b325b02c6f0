"""What is written about a run must not end it: a full disk costs records, not steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttt_dist.util.console import warn


class BestEffort:
    """A context for what writes records. Its first failure of each kind is told, none is raised."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        """What could not be written, at least once."""

    @contextmanager
    def __call__(self, what: str | Path) -> Iterator[None]:
        """`what` is being written. An interrupt is no failure."""
        try:
            yield
        except Exception as error:  # whatever a library makes of a disk that takes nothing
            if str(what) not in self.failed:
                self.failed.add(str(what))
                warn(f"{what}: cannot be written ({_reason(error)}); the run goes on without it")


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return " ".join(str(said or type(error).__name__).split())[:200]
