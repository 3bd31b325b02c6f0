"""How a command's process ends: with the status of its work, whatever its libraries' threads are doing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import atexit, sys, threading, time
import torch
from ttt_dist.util.console import run_command
from ttt_dist.util.errors import UserError

def multiply():
    matrix = torch.ones(400, 400)
    while True:
        matrix @ matrix  # without the interpreter's lock; to take it again while that one is taken down ends the process

def write_late():
    time.sleep(0.3)
    print("written late", flush=True)

def main():
    threading.Thread(target=multiply, daemon=True).start()
    threading.Thread(target=write_late).start()
    atexit.register(print, "at exit")
    time.sleep(0.1)
    {end}

run_command(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("pass", 0, ""),
        ("sys.exit(75)", 75, ""),
        ("sys.exit('a reason')", 1, "error: a reason\n"),
        ("raise UserError('a mistake; mend it')", 1, "error: a mistake; mend it\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_the_status_is_that_of_the_work_beside_threads_of_libraries(end: str, status: int, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(end=end)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (status, "written late\nat exit\n"), done.stderr
    assert done.stderr.endswith(told) and bool(done.stderr) == bool(told)
