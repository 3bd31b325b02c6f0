"""The only place that writes to the terminal: messages, progress, and the exit status of a command.

Messages and results go to stdout, warnings, errors and progress to stderr, so that `command | script` reads results
only. In a job of several processes rank 0 alone talks (environment variable RANK); errors are told by every rank,
because the rank that fails may be another one.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

from ttt_dist.util.errors import UserError, one_line, printable

PLAIN_INTERVAL_S = 10.0  # between two lines of progress where the output is no terminal
BAR_INTERVAL_S = 0.1
BAR_WIDTH = 24
REMEDIES = {
    errno.ENAMETOOLONG: "give a shorter one",
    errno.ENOTDIR: "a part of this path is a file: correct it",
    errno.EEXIST: "remove it, or name another",
    errno.EISDIR: "name a file",
    errno.ELOOP: "its links lead in a circle: correct them",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
}
"""What the system says of a path is the user's to put right wherever it is met; other errors are ours."""


def rank() -> int:
    """This process's rank as the launcher set it; 0 where there is none."""
    value = os.environ.get("RANK", "0")
    return int(value) if value.isdigit() else 0


def print_rank0(message: str = "") -> None:
    """A line on stdout, from rank 0 only."""
    print_piece(f"{printable(message)}\n")


def print_piece(piece: str) -> None:
    """Text on stdout as it comes, without an end of line; from rank 0 only. Raises UserError where stdout takes none."""
    if rank() != 0:
        return
    try:
        sys.stdout.write(piece)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _close_stdout()
        raise UserError(
            f"the output cannot be written ({error.strerror}); free some space, or send it elsewhere"
        ) from None


def _tell(text: str) -> None:
    """Text on stderr. Where it takes none, the work goes on: from then on nobody hears of it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        sys.stderr = Lossy(sys.stderr)


def _close_stdout() -> None:
    """What has not reached stdout must not be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """A line `warning: ...` on stderr, from rank 0 only."""
    if rank() == 0:
        _erase_bar()
        _tell(f"warning: {one_line(message)}\n")


def note(message: str) -> None:
    """A line `note: ...` on stderr, from rank 0 only: what a command does besides, and a script need not read."""
    if rank() == 0:
        _erase_bar()
        _tell(f"note: {one_line(message)}\n")


def print_error(message: str) -> None:
    """A line `error: ...` on stderr, from every rank: the one that fails may not be the first."""
    _erase_bar()
    who = f" (rank {rank()} on {socket.gethostname()})" if rank() else ""
    _tell(f"error{who}: {one_line(message)}\n")


def print_json(figures: Mapping[str, Any]) -> None:
    """The last line of a command that a script reads: its figures as one JSON object on stdout."""
    print_rank0(json.dumps(figures))


class Lossy:
    """A stream whose lines may be lost: what a full disk or a reader that has gone does not take, nobody hears of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Progress:
    """Progress of a loop: a bar on a terminal, elsewhere a plain line every ten seconds; with rate and time left.

    `total` may be None (unknown) or in any unit (a float of audio seconds too). Advance by the amount done:

        with Progress(len(files), "reading", "file") as progress:
            for file in files:
                ...
                progress.advance()
    """

    def __init__(self, total: float | None, label: str, unit: str = "item") -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0.0
        self.note = ""  # shown behind the bar, e.g. the current loss
        self._initial = 0.0
        self._start = self._last = time.monotonic()
        self._bar = sys.stderr.isatty()
        self._plain_lines = 0
        self._shown = -1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close(finished=kind is None)

    def skip(self, amount: float) -> None:
        """Count `amount` as done before the start (resumed work): it is left out of the rate."""
        self._initial += amount
        self.done += amount

    def advance(self, amount: float = 1) -> None:
        """Count `amount` more units as done, and show it when it is time to."""
        self.done += amount
        now = time.monotonic()
        if now - self._last >= (BAR_INTERVAL_S if self._bar else PLAIN_INTERVAL_S):
            self._last = now
            self._show(end="")

    def close(self, finished: bool = True) -> None:
        """Show the last state. A job too short for a single plain line stays silent where there is no terminal."""
        if self._bar or (self._plain_lines and finished and self.done != self._shown):
            self._show(end="\n")

    def line(self) -> str:
        """The state as text: `label 40 % 400/1,000 items, 100 items/s, 0:06 left`."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._initial) / elapsed
        parts = [f"{_amount(rate)} {self.unit}/s"]
        if self.total:
            head = f"{100 * self.done / self.total:3.0f} % {_amount(self.done)}/{_amount(self.total)} {self.unit}"
            left = max(self.total - self.done, 0.0)
            parts.append(f"{_clock(elapsed)} taken" if left <= 0 else f"{_clock(left / rate)} left" if rate else "")
        else:
            head = f"{_amount(self.done)} {self.unit}"
            parts.append(f"{_clock(elapsed)} taken")
        return ", ".join(part for part in [f"{self.label} {head}", *parts, self.note] if part)

    def _show(self, end: str) -> None:
        if rank() != 0:
            return
        self._shown = self.done
        if not self._bar:
            self._plain_lines += 1
            _tell(self.line() + "\n")
        else:
            share = min(self.done / self.total, 1.0) if self.total else 0.0
            bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".") + " " if self.total else ""
            _tell(f"\r\x1b[2K{bar}{self.line()}{end}")


def main_guard(main: Callable[[], None], loses_lines: bool = False) -> None:
    """Run an entry point: a UserError becomes one line on stderr and its exit status (1 as a rule), Ctrl-C status 130.

    `loses_lines`: work goes on where its output cannot be written, such as `train.py > train.log` on a disk that is full.
    """
    if loses_lines:
        sys.stdout, sys.stderr = Lossy(sys.stdout), Lossy(sys.stderr)
    try:
        main()
    except UserError as error:
        if not error.is_agreed or rank() == 0:
            print_error(str(error))
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _close_stdout()  # the reader of our output (`| head`) has gone
        sys.exit(141)
    except OSError as error:
        if error.errno not in REMEDIES or error.filename is None:
            raise
        print_error(f"{os.fsdecode(error.filename)}: {error.strerror}; {REMEDIES[error.errno]}")
        sys.exit(1)


def run_command(main: Callable[[], None], loses_lines: bool = False) -> None:
    """`main_guard` for the entry point of a process, which ends with the status of its work.

    A thread of a library that comes back to Python while the interpreter is taken down aborts the process ("terminate called
    without an active exception") and makes the status -6: with torch 2.11 a server that was stopped did so once in some hundred
    times on a busy machine, a training run, by Gloo's threads, once in some thousand. So nothing is taken down: the process
    ends behind what Python does at exit.
    """
    status = 1  # where an exception comes through
    try:
        main_guard(main, loses_lines)
        status = 0
    except SystemExit as raised:
        status = 0 if raised.code is None else raised.code & 0xFF if isinstance(raised.code, int) else 1
        raise
    finally:
        atexit.register(_End(status))


class _End:
    """Ends the process, where Python begins to call what is registered for the exit: the last that is registered comes first."""

    def __init__(self, status: int) -> None:
        self.status = status

    def __call__(self) -> None:
        try:
            atexit.unregister(self)
            atexit._run_exitfuncs()
            _finalize_mpi()
            self._flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(self.status)

    def _flush(self) -> None:
        ctypes.CDLL(None).fflush(None)  # what libraries print, such as NCCL_DEBUG
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None and not stream.closed:
                    stream.flush()
            except BrokenPipeError:
                self.status = self.status or 141
            except OSError as error:
                self.status = self.status or 120  # as Python
                print_error(f"the output cannot be written ({error.strerror}); free some space, or send it elsewhere")


def _finalize_mpi() -> None:
    """mpi4py would, when the interpreter is taken down; mpirun calls a process abnormal that has not."""
    mpi4py, mpi = sys.modules.get("mpi4py"), sys.modules.get("mpi4py.MPI")
    if mpi and mpi.Is_initialized() and not mpi.Is_finalized() and mpi4py and mpi4py.rc.finalize is not False:
        mpi.Finalize()


def _erase_bar() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
