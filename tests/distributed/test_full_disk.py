"""A run whose records find no place: it trains, saves and stops as any other."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.small_run import ROOT, TRAIN, environment, execute, make_run
from ttt_dist.checkpoint.manifest import require_whole

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder in which nothing but checkpoints can be written."""
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    for name in ("metrics.jsonl", "events.jsonl", "logs/rank-00000.log"):
        (run / name).symlink_to(FULL)
    for name in ("config.yaml", "environment.json"):
        (run / name / "in the way").mkdir(parents=True)
    for name in ("tensorboard", "wandb", "profile"):
        (run / name).write_text("in the way")
    return run


def settings(tmp_path: Path, **train: object) -> list[str]:
    records = {"tensorboard": True, "wandb": "offline", "profile_start": 1, "profile_steps": 1}
    config = make_run(tmp_path, telemetry=records, train=train, checkpoint={"save_every": 0})
    return [sys.executable, TRAIN, "--config", str(config)]


def test_records_are_lost_and_steps_are_not(run: Path, tmp_path: Path) -> None:
    done = execute(settings(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr
    told = [line for line in done.stderr.splitlines() if "the run goes on without it" in line]
    missing = ("config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "wandb", "events.jsonl", "profile")
    assert sorted(line.partition(": cannot")[0].rpartition("/")[2] for line in told) == sorted(missing)
    require_whole(run / "checkpoints" / "step-00000006")
    assert (run / "export" / "config.json").is_file()


def test_a_signal_still_saves_where_not_even_the_console_takes_a_line(run: Path, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        command = settings(tmp_path, steps=100_000)
        variables = environment(OMP_NUM_THREADS="1")
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=full, stderr=full)
    hears = f"/proc/{process.pid}/status"
    end = time.monotonic() + 120
    while time.monotonic() < end and not catches(Path(hears), signal.SIGUSR1):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    newest = (run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()).resolve()
    require_whole(newest)
    assert json.loads((newest / "run.json").read_text())["step"] >= 1


def test_output_that_finds_no_place_is_one_line(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        command = [*settings(tmp_path), "--dry-run"]
        out = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        err = subprocess.run([*command, "nope=1"], cwd=ROOT, env=environment(), stderr=full, check=False)
    assert out.returncode == 1
    assert (
        out.stderr
        == "error: the output cannot be written (No space left on device); free some space, or send it elsewhere\n"
    )
    assert err.returncode == 1


def catches(status: Path, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
