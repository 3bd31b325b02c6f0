"""`context`: processes of tests that are forked from one that has imported torch and DeepSpeed, by multiprocessing's fork server.

A new Python takes 6 s of CPU for these imports. Real commands, by `deepspeed`, `mpirun`, `srun` or by hand, take them; enough
tests start such ones.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def context() -> ForkServerContext:
    """A context whose processes have imported what preload.py imports, and see no GPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    return context


def run_program(program: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """What a process of `context` does to be `python program arguments` in the project's folder, its output in `log`, which is there."""
    file = os.open(log, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    sys.path.insert(0, "")  # a program puts its own folder, or the project's, into the first place
    runpy.run_path(str(ROOT / program), run_name="__main__")
