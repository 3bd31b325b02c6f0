"""How a command's process ends: with the status of its work, whatever its libraries' threads are doing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import atexit, sys, threading, time
from ttt_dist.util.console import run_command
from ttt_dist.util.errors import UserError

def write_late():
    time.sleep(0.3)
    print("written late", flush=True)

def main():
    threading.Thread(target=write_late).start()
    atexit.register(print, "at exit")
    {end}
"""
MULTIPLY = """
import torch

def multiply():
    matrix = torch.ones(400, 400)
    while True:
        matrix @ matrix  # without the interpreter's lock; to take it again while that one is taken down ends the process

threading.Thread(target=multiply, daemon=True).start()
time.sleep(0.1)
"""

INTERRUPT = """
import os, signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored

def interrupt():
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
"""


def run(script: str, **streams: Any) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", f"{script}\nrun_command(main)"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, check=False, **streams)


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("sys.exit(75)", 75)])
def test_a_thread_of_a_library_changes_no_status(end: str, status: int) -> None:
    done = run(COMMAND.format(end=end) + MULTIPLY)
    assert (done.returncode, done.stdout, done.stderr) == (status, "written late\nat exit\n", "")


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("sys.exit('a reason')", 1, "a reason\n"),
        ("sys.exit([])", 1, "[]\n"),
        ("sys.exit(-1)", 255, ""),
        ("raise UserError('a mistake; mend it')", 1, "error: a mistake; mend it\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("sys.stderr.close(); sys.stderr = None; sys.exit(75)", 75, ""),
    ],
)
def test_every_end_waits_for_what_is_under_way(end: str, status: int, told: str) -> None:
    done = run(COMMAND.format(end=end))
    assert (done.returncode, done.stdout) == (status, "written late\nat exit\n")
    assert done.stderr.endswith(told) and bool(done.stderr) == bool(told)


@pytest.mark.parametrize(("end", "status"), [("pass", 120), ("sys.exit(75)", 75)])
def test_output_that_finds_no_room_is_told(end: str, status: int) -> None:
    with open("/dev/full", "w") as full:
        done = run(COMMAND.format(end="print('not flushed'); " + end), stdout=full)
    assert done.returncode == status
    assert done.stderr.endswith(
        "error: the output cannot be written (No space left on device); free some space, or send it elsewhere\n"
    )


def test_a_signal_at_the_end_and_a_handler_that_fails_take_no_status() -> None:
    script = COMMAND.format(
        end="atexit.register(lambda: 1 / 0); threading.Thread(target=interrupt).start(); sys.exit(75)"
    )
    done = run(INTERRUPT + script)
    assert done.returncode == 75 and done.stdout.endswith("at exit\n")
    assert "KeyboardInterrupt" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_profiler_around_it_and_what_c_has_printed_are_not_lost(tmp_path: Path) -> None:
    script = COMMAND.format(end="import ctypes; ctypes.CDLL(None).puts(b'from C')") + "\nrun_command(main)"
    (tmp_path / "command.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}")
    done = subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", "profile", "command.py"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"from C\n" in done.stdout, done.stderr
    assert (tmp_path / "profile").stat().st_size > 1000
