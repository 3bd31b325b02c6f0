"""Every test process uses one thread and the CPU: tests run side by side with others, and must not depend on a GPU."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tests.properties  # noqa: F401  # sets how property tests run

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(autouse=True)
def nothing_left_that_ends_the_process() -> Iterator[None]:
    """A watchdog that a test forgets would end its worker a minute later, in the middle of another test."""
    yield
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of one."""
    import torch.distributed as dist

    from ttt_dist.launch.rendezvous import free_port

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes whole files, whose tests share what they made; those of tests/cluster together: their daemons and
    clocks want no other of their kind on the machine. (--dist loadgroup groups nothing under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/cluster" if file.startswith("tests/cluster/") else file

    return ByFile(config, log)
