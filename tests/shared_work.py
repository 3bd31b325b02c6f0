"""What tests of work that is shared out, killed and gone on with have in common."""

import argparse
import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.cluster.needs import need

Compare = Callable[[int, str], None]
"""Takes the exit status of a run, and after what it ran."""
ROOT = Path(__file__).resolve().parents[1]
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, leftovers too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
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
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def add_campaign(parser: argparse.ArgumentParser) -> None:
    """Arguments of `campaign`."""
    parser.add_argument("command", choices=["kill"])
    parser.add_argument("--kills", type=int, default=50, help="runs killed at a random moment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changes", type=int, metavar="N", help="kill before every Nth change of a file instead")


def campaign(
    work: Callable[[], None], out: Path, args: argparse.Namespace, seen: Callable[[Path], Mapping[str, Any]] = contents
) -> None:
    """Kill `work`, which writes `out`, as the arguments say; prints one JSON line of figures.

    Raises AssertionError where `work` cannot go on, or what is `seen` of `out` differs from that of an undisturbed run.
    """
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.NamedTemporaryFile("r") as file:
        start = time.monotonic()
        assert os.waitpid(in_child(partial(_tell_modules, work, file.name)), 0)[1] == 0
        whole = time.monotonic() - start
        for name in file.read().split():
            with suppress(Exception):  # some are imported by others alone
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks look through their own alone
    wanted = seen(out)
    assert not [name for name in contents(out) if name.endswith((".tmp", ".lock"))]
    shutil.rmtree(out)

    def compare(status: int, after: str) -> None:
        assert status == 0, f"exit status {os.waitstatus_to_exitcode(status)} after {after}"
        assert_same(seen(out), wanted)
        shutil.rmtree(out)

    if args.changes:
        figures = _kill_before_changes(work, out, compare, args.changes)
    else:
        figures = _kill_at_moments(work, compare, whole, args)
    sys.stdout.write(json.dumps(figures | {"seconds_undisturbed": round(whole, 2), "lost": 0}) + "\n")


def _tell_modules(work: Callable[[], None], file: str) -> None:
    """Do the work, then write down what has been imported for it: each fork would import it anew."""
    work()
    Path(file).write_text("\n".join(sys.modules))


def _kill_at_moments(
    work: Callable[[], None], compare: Compare, whole: float, args: argparse.Namespace
) -> dict[str, float]:
    """At random moments until so many runs have been killed; each that ends, and the one after the last kill, is compared."""
    rng = random.Random(args.seed)
    done = compared = 0
    while done < args.kills:
        child = in_child(work)
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            if rng.random() < 0.6 and done < args.kills:
                continue
            _, status = os.waitpid(in_child(work), 0)
        compare(status, f"{done} kills")
        compared += 1
    return {"kills": done, "compared": compared}


def _kill_before_changes(work: Callable[[], None], out: Path, compare: Compare, stride: int) -> dict[str, float]:
    """Before every `stride`-th change below `out`, one after the other; the run that follows must end and is compared.

    Changes are those that Python makes; what libraries write is there when its file is renamed. A stride of 3 comes to every
    state between two finished files: each is opened, renamed, and its leftovers removed.
    """
    done = 0
    while True:
        _, status = os.waitpid(in_child(partial(_until_change, work, out, done * stride)), 0)
        if not os.WIFSIGNALED(status):
            break
        _, status = os.waitpid(in_child(work), 0)
        compare(status, f"a kill before change {done * stride}")
        done += 1
    compare(status, "no kill")
    return {"kills": done, "compared": done + 1}


def _until_change(work: Callable[[], None], out: Path, number: int) -> None:
    """Do the work up to change `number` of a file or folder below `out`."""
    left = iter(range(number))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_change(event, arguments, out) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work()


def _is_change(event: str, arguments: tuple[Any, ...], out: Path) -> bool:
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return False
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
        return False
    return isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(str(out))
