"""A run on two hosts, or what takes itself for two, one of which is lost: it goes on on the other without anybody's doing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.small_run import ROOT, TRAIN, Ranks, environment, make_run, records
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.telemetry.events import read_events

STEPS, SAVE_EVERY = 40, 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    make_run(
        folder,
        train={"steps": STEPS, "eval_every": 0},
        checkpoint={"save_every": SAVE_EVERY, "async_save": True},
    )
    return folder


class Agents:
    """`tools/elastic.py` once for each of several hosts, all of which are this machine."""

    def __init__(self, number: int, work: Path, run: Path, *options: str) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.log, self.processes = run / "output.txt", []
        shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [
            sys.executable,
            "tools/elastic.py",
            *options,
            TRAIN,
            "--config",
            str(work / "config.yaml"),
            f"run_dir={run}",
        ]
        with self.log.open("w") as log:
            for host in range(number):
                own = environment(**shared, RANK=str(host), OMP_NUM_THREADS="1")
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log))

    def wait(self, host: int) -> int:
        try:
            return self.processes[host].wait(timeout=240)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert self.processes[0].poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)


def step_of(run: Path) -> int:
    return len(records(run)) if (run / "metrics.jsonl").exists() else 0


def figures(run: Path) -> list[list[Any]]:
    keys = ("step", "loss", "ar_loss", "nar_loss", "grad_norm")
    return [[record[key] for key in keys] for record in records(run) if "loss" in record]


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    run = work / "undisturbed"
    run.mkdir()
    ranks = Ranks(2, "--config", str(work / "config.yaml"), f"run_dir={run}", log=run / "output")
    assert ranks.wait() == [0, 0], ranks.output()
    return run


@pytest.mark.slow
def test_an_agent_is_killed_and_the_run_goes_on_on_the_other_host(
    work: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    agents = Agents(2, work, run, f"--bad-hosts={tmp_path / 'bad'}", f"--status-file={tmp_path / 'status'}")
    agents.until(lambda: step_of(run) > SAVE_EVERY)
    agents.processes[1].kill()
    assert agents.wait(0) == 0, agents.log.read_text()
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert [start["world_size"] for start in starts] == [2, 1]
    assert starts[1]["step"] % SAVE_EVERY == 0 and starts[1]["step"] >= SAVE_EVERY
    assert len(figures(run)) == STEPS
    for one, other in zip(figures(run), figures(undisturbed), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert (tmp_path / "status").read_text() == "0\n"
    assert len((tmp_path / "bad").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_a_stop_reaches_all(
    work: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    agents = Agents(2, work, run)
    agents.until(lambda: step_of(run) > SAVE_EVERY)
    worker = children_of(agents.processes[1].pid)[0]
    os.kill(worker, signal.SIGKILL)
    agents.until(lambda: sum(event["event"] == "start" for event in read_events(run)) == 2)
    agents.until(lambda: step_of(run) > 2 * SAVE_EVERY)
    agents.processes[1].send_signal(signal.SIGUSR1)
    assert agents.wait(0) == 75, agents.log.read_text()
    stop = read_events(run)[-1]
    assert (stop["event"], stop["reason"]) == ("stop", "SIGUSR1")
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert [start["world_size"] for start in starts] == [2, 2]
    assert figures(run) == figures(undisturbed)[: stop["step"]]  # the same layout: to the last bit


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
