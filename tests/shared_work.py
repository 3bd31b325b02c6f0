"""What tests of work that is shared out, killed and gone on with have in common."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.cluster.needs import need

ROOT = Path(__file__).resolve().parents[1]
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, leftovers too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """The same files, byte for byte; names what differs."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    assert not [name for name in wanted if found[name] != wanted[name]]


def mpirun(ranks: int) -> list[str]:
    """Words before a command that start it so many times; they want `AS_ROOT` in the environment."""
    need("mpirun")
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]


def command(*words: str, ranks: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run Python with these words to its end, under mpirun where `ranks` says how many."""
    return subprocess.run(
        [*(mpirun(ranks) if ranks else []), sys.executable, *words],
        cwd=ROOT,
        env=os.environ | AS_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a fork of this process, whose imports are done; returns its process id."""
    child = os.fork()
    if child:
        return child
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def kill_again_and_again(work: Callable[[], None], out: Path, kills: int, seed: int) -> dict[str, float]:
    """Start `work`, which writes `out`, until so many runs have been killed at a random moment; each that ends is compared.

    Returns the figures; raises AssertionError where `out` differs by a byte from what an undisturbed run wrote.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    rng, start = random.Random(seed), time.monotonic()
    assert os.waitpid(in_child(work), 0)[1] == 0
    whole = time.monotonic() - start
    wanted = contents(out)
    assert not [name for name in wanted if name.endswith((".tmp", ".lock"))]
    shutil.rmtree(out)
    done = compared = 0
    while done < kills:
        child = in_child(work)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            if rng.random() < 0.6:
                continue
            _, status = os.waitpid(in_child(work), 0)
        assert status == 0, f"exit status {status} after {done} kills"
        assert_same(contents(out), wanted)
        compared += 1
        shutil.rmtree(out)
    return {"kills": done, "compared": compared, "seconds_undisturbed": round(whole, 2), "lost": 0}
