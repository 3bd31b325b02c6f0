"""How a command's process ends: with the status of its work, whatever its libraries' threads are doing."""

import subprocess
import sys
from pathlib import Path

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


def run(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"{script}\nrun_command(main)"], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("sys.exit(75)", 75)])
def test_a_thread_of_a_library_changes_no_status(end: str, status: int) -> None:
    done = run(COMMAND.format(end=end) + MULTIPLY)
    assert (done.returncode, done.stdout, done.stderr) == (status, "written late\nat exit\n", "")


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("sys.exit('a reason')", 1, "error: a reason\n"),
        ("raise UserError('a mistake; mend it')", 1, "error: a mistake; mend it\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_every_end_waits_for_what_is_under_way(end: str, status: int, told: str) -> None:
    done = run(COMMAND.format(end=end))
    assert (done.returncode, done.stdout) == (status, "written late\nat exit\n")
    assert done.stderr.endswith(told) and bool(done.stderr) == bool(told)
