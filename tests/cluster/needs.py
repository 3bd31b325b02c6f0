"""What tests on real daemons need: root and system packages. Elsewhere they skip with the reason; in CI that is a failure."""

import os
import shutil
import subprocess

import psutil
import pytest


def need(*programs: str) -> None:
    """Skip the test, or fail it in CI, where one of `programs` is not there."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        _give_up(f"not installed: {', '.join(missing)}; .ci/run names the packages")


def need_namespaces() -> None:
    """The same without root, or on a system that gives not even root namespaces."""
    if os.geteuid() != 0:
        _give_up("only root can start these daemons")
    if subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False).returncode:
        _give_up("this system gives nobody namespaces of their own")


def _give_up(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what `alone_in_namespaces` has started, and with it everything that runs in its namespaces."""
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    for first in children or [process]:  # the first process of the namespaces, whose end is the end of all
        first.kill()
    process.wait()


def alone_in_namespaces(*kinds: str) -> list[str]:
    """The start of a command that runs in new namespaces, and dies, with all that came of it, with this process."""
    return [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--pid", "--mount-proc"),
        *(f"--{kind}" for kind in kinds),
    ]
