"""`context`: processes of tests that are forked from one that has imported torch and DeepSpeed, by multiprocessing's fork server.

A new Python takes 6 s of CPU for these imports. Real commands, by `deepspeed`, `mpirun`, `srun` or by hand, take them; enough
tests start such ones.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]


def context() -> ForkServerContext:
    """A context whose processes have imported what preload.py imports, and see no GPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    return context


def python(
    words: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """What `python words` does in the project's folder, to its end, in a process of `context`."""
    with TemporaryDirectory() as folder:
        out, error = (Path(folder, name) for name in ("out", "error"))
        process = context().Process(target=run_python, args=(words, environment, out, error))
        process.start()
        process.join(timeout_s)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), timeout_s)
        return subprocess.CompletedProcess(list(words), status, out.read_text(), error.read_text())


def run_python(words: Sequence[str], environment: Mapping[str, str], out: Path, error: Path) -> None:
    """What a process of `context` does to be `python words`, a program or `-m` a module."""
    for number, path in enumerate((out, error), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    # In the first place a program puts its own folder, or the project's.
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
