"""Arrow files, opened in a child process first: at some damaged ones pyarrow ends the process that opens them.

The child (`python -m ttt_dist.audio.arrow_files`) takes a path a line, and answers with what is wrong, or an empty text. One
serves all files of a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import Table

ROOT = Path(__file__).resolve().parents[2]


def open_arrow(path: Path) -> Table:
    """The rows of an Arrow file or stream, memory-mapped. Raises what pyarrow raises."""
    import pyarrow as pa

    with open(path, "rb") as file:
        is_file = file.read(6) == b"ARROW1"
    source = pa.memory_map(str(path))
    return (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()


class Checker:
    """Asks the child, once for each file as it is now; a child that a file ended is replaced."""

    def __init__(self) -> None:
        self._sound: set[tuple[str, int, int]] = set()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0  # a process that was forked has no child of its own yet

    def problem(self, path: Path) -> str:
        """What is wrong with an Arrow file; empty where it can be opened and every offset in it lies inside."""
        state = os.stat(path)
        key = (str(path), state.st_mtime_ns, state.st_size)
        with self._lock:
            if key in self._sound:
                return ""
            if not (problem := self._ask(path)):
                self._sound.add(key)
            return problem

    def _ask(self, path: Path) -> str:
        if self._child is None or self._owner != os.getpid():
            self._child, self._owner = self._started(), os.getpid()
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(str(path)) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if answer:
            return str(json.loads(answer))
        self._child.communicate()
        self._child = None
        return "pyarrow gives up at it"

    def _started(self) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )


def main() -> None:
    """The child: try each file that is named."""
    for line in sys.stdin:
        try:
            open_arrow(Path(json.loads(line))).validate(full=True)
            answer = ""
        except Exception as error:
            answer = str(error) or type(error).__name__
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
