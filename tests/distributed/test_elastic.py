"""A run on two hosts, or what takes itself for two, one of which is lost: it goes on on the other without anybody's doing."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.agents import Agents
from tests.distributed.small_run import Ranks, make_run, records
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
    agents = Agents(
        2,
        work / "config.yaml",
        run,
        options=(f"--bad-hosts={tmp_path / 'bad'}", f"--status-file={tmp_path / 'status'}"),
    )
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
    agents = Agents(2, work / "config.yaml", run)
    agents.until(lambda: step_of(run) > SAVE_EVERY)
    worker = agents.workers(1)[0]
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
