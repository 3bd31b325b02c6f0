"""A callback that the config names, in the real command: called on all ranks, in order, with what it was promised."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.small_run import SAVED, STEPS, TRAIN, execute, launch, make_run, records, train_on_two
from ttt_dist.telemetry.events import read_events

NAME = "tests.distributed.told_hooks:Told"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("hooks"))


def alone(config: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    return execute([sys.executable, TRAIN, "--config", str(config), *overrides])


def told(run: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"hooks-{rank}.jsonl").read_text().splitlines()]


def test_hooks_are_called_on_all_ranks_in_order(config: Path) -> None:
    train_on_two(config, f"callbacks=[{NAME}]")
    run = config.parent / "run"
    lines = told(run, 0)
    assert lines == told(run, 1)
    expected = []
    for step in range(1, STEPS + 1):
        expected += [("pre_step", step)]
        expected += [("evaluated", step)] * (step % 3 == 0)  # Evaluation comes before a user's own
        expected += [("post_step", step)]
        expected += [("checkpoint_saved", step)] * (step % SAVED == 0)
    assert [(line["hook"], line["step"]) for line in lines[:-1]] == expected
    assert lines[-1] == {"hook": "close"}
    assert {line["ranks"] for line in lines[:-1]} == {2}
    assert [line["loss"] for line in lines if line["hook"] == "post_step"] == [
        record["loss"] for record in records(run) if "loss" in record
    ]
    assert [line["loss"] for line in lines if line["hook"] == "evaluated"] == [
        record["eval_loss"] for record in records(run) if "eval_loss" in record
    ]
    saved = [line for line in lines if line["hook"] == "checkpoint_saved"]
    assert all(line["is_there"] and line["folder"] == f"step-{line['step']:08d}" for line in saved)


def test_what_a_hook_raises_ends_the_run_and_everything_is_closed(config: Path, tmp_path: Path) -> None:
    done = alone(config, f"run_dir={tmp_path}/run", f"callbacks=[{{{NAME}: {{fail_at: 2}}}}]")
    assert done.returncode == 1 and "a hook failed" in done.stderr
    lines = told(tmp_path / "run", 0)
    assert [line["hook"] for line in lines] == ["pre_step", "post_step", "pre_step", "post_step", "close"]
    assert read_events(tmp_path / "run")[-1]["event"] == "fault"


def test_a_hook_ends_the_training_and_its_state_goes_on(config: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", [f"run_dir={tmp_path}/run", "data.valid=null"]
    train_on_two(config, *settings, f"callbacks=[{{{NAME}: {{stop_at: 2, keep: [1, x]}}}}]")  # status 0
    assert [event["event"] for event in read_events(run)] == ["start", "checkpoint", "finish"]
    assert (read_events(run)[-1]["step"], read_events(run)[-1]["reason"]) == (2, "a hook has seen enough")
    assert (run / "export" / "model.safetensors").is_file()
    kept = json.loads((run / "checkpoints" / "step-00000002" / "run.json").read_text())["counters"]["callbacks"]
    assert kept == [{"name": NAME, "state": {"steps": 2, "keep": [1, "x"]}}]
    train_on_two(config, *settings, f"callbacks=[{NAME}]")
    for rank in range(2):
        steps = [(line["step"], line["steps"]) for line in told(run, rank) if line["hook"] == "post_step"]
        assert steps == [(step, step) for step in range(1, STEPS + 1)]


def test_a_finished_run_has_status_0_whatever_libraries_do_when_they_are_taken_down(
    config: Path, tmp_path: Path
) -> None:
    launch(config, f"run_dir={tmp_path}/run", "callbacks=[tests.distributed.told_hooks:Broken]")
    assert read_events(tmp_path / "run")[-1]["event"] == "finish"


def test_state_that_no_file_can_hold_is_named(config: Path, tmp_path: Path) -> None:
    done = alone(config, f"run_dir={tmp_path}/run", f"callbacks=[{{{NAME}: {{stop_at: 1, keep: a set}}}}]")
    assert done.returncode == 1
    assert f"error: callbacks: {NAME}: state_dict() holds what JSON cannot" in done.stderr


def test_a_dry_run_finds_a_wrong_name(config: Path, tmp_path: Path) -> None:
    done = alone(config, "--dry-run", f"run_dir={tmp_path}/run", "callbacks=[my_package.hooks:Mine]")
    assert done.returncode == 1
    assert done.stderr == (
        "error: callbacks: my_package.hooks:Mine: there is no module my_package; install its package, or put its folder "
        "on PYTHONPATH\n"
    )
