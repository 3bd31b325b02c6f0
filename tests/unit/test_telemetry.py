"""What is written about a run: records, events, wandb's one run, profiler windows."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ttt_dist.config.loader import load_config
from ttt_dist.config.run import Config, TelemetryConfig, TrainConfig
from ttt_dist.telemetry.events import EVENTS, Events, read_events
from ttt_dist.telemetry.metrics import open_metrics
from ttt_dist.telemetry.profiler import ProfileWindow
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def records(run: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_records_of_steps_to_be_done_again_are_dropped_and_all_are_json(tmp_path: Path) -> None:
    metrics = open_metrics(tmp_path, 0, {}, "off", "p", False)
    for step in (10, 20, 30):
        metrics.log(step, {"loss": float("nan") if step == 20 else 1.0, "grad_norm": float("inf")})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # a process died in the midst of a line
    again = open_metrics(tmp_path, 20, {}, "off", "p", False)
    again.log(30, {"loss": 2.0})
    again.close()
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [(10, 1.0), (20, None), (30, 2.0)]
    assert records(tmp_path)[0]["grad_norm"] is None


@pytest.mark.slow
def test_all_starts_of_a_run_folder_are_one_wandb_run(tmp_path: Path) -> None:
    for run, start in ((tmp_path / "a", 0), (tmp_path / "a", 2), (tmp_path / "b", 0)):
        run.mkdir(exist_ok=True)
        metrics = open_metrics(run, start, {"seed": 1}, "offline", "p", False)
        metrics.log(start + 1, {"loss": 1.0})
        metrics.close()
    ids = [{path.stem for path in (tmp_path / run).glob("wandb/offline-run-*/run-*.wandb")} for run in ("a", "b")]
    assert [len(group) for group in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_events_are_never_lost(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    Events(tmp_path).log("start", 0, world_size=2)
    Events(tmp_path).log("checkpoint", 5, seconds=0.1)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"time": "2026-')  # cut short by a full disk
    Events(tmp_path).log("start", 5, checkpoint="step-00000005")
    found = read_events(tmp_path)
    assert [(e["event"], e["step"]) for e in found] == [("start", 0), ("checkpoint", 5), ("start", 5)]
    assert found[0]["world_size"] == 2
    assert sorted(e["time"] for e in found) == [e["time"] for e in found]


def test_an_event_of_no_known_kind_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Events(tmp_path).log("lunch", 0)  # type: ignore[arg-type]


def profile_config(run: Path, **telemetry: object) -> Config:
    return Config(run_dir=str(run), train=TrainConfig(steps=8), telemetry=TelemetryConfig(**telemetry))


def work(config: Config, rank: int, start_step: int = 0) -> list[str]:
    """Names of what a process of the run leaves in RUN/profile."""
    window = ProfileWindow.of_run(config, rank, start_step)
    for step in range(start_step, config.train.steps):
        window.begin_step(step + 1)
        with torch.profiler.record_function(f"step {step + 1}"):
            torch.ones(64, 64) @ torch.ones(64, 64)
        window.end_step(step + 1)
    return sorted(path.name for path in (Path(config.run_dir) / "profile").glob("*"))


@pytest.mark.slow
def test_the_window_holds_its_steps_and_no_other(tmp_path: Path) -> None:
    names = work(profile_config(tmp_path, profile_start=3, profile_steps=2), 0)
    assert names == ["steps-3-4-rank-00000.json.gz", "steps-3-4-rank-00000.txt"]
    trace = json.loads(gzip.decompress((tmp_path / "profile" / names[0]).read_bytes()))
    steps = {event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("step ")}
    assert steps == {"step 3", "step 4"}
    assert "aten::mm" in (tmp_path / "profile" / names[1]).read_text()


@pytest.mark.parametrize(
    ("telemetry", "rank", "start_step", "names"),
    [
        ({}, 0, 0, []),
        ({"profile_steps": 2}, 0, 0, []),  # from step 10 on, but the run has 8
        ({"profile_start": 7, "profile_steps": 9}, 0, 0, ["steps-7-8"]),
        ({"profile_start": 2, "profile_steps": 3}, 0, 3, ["steps-4-4"]),
        ({"profile_start": 2, "profile_steps": 2}, 0, 5, []),
        ({"profile_start": 2, "profile_steps": 1}, 1, 0, []),
        ({"profile_start": 2, "profile_steps": 1, "profile_ranks": [1]}, 1, 0, ["steps-2-2"]),
    ],
)
def test_windows_at_the_ends_of_a_run(
    tmp_path: Path, telemetry: dict, rank: int, start_step: int, names: list[str]
) -> None:
    found = work(profile_config(tmp_path, **telemetry), rank, start_step)
    assert [name for name in found if name.endswith(".txt")] == [f"{name}-rank-{rank:05d}.txt" for name in names]


@pytest.mark.slow
def test_a_run_that_ends_within_the_window_leaves_what_there_is_and_exits_as_it_would(tmp_path: Path) -> None:
    """In a process of its own: torch crashes at the exit of one whose profiler still runs."""
    program = """
import sys
from pathlib import Path
from ttt_dist.telemetry.profiler import ProfileWindow
window = ProfileWindow(Path(sys.argv[1]), 0, range(1, 9))
try:
    for number in range(1, 9):
        window.begin_step(number)
        if number == 4:
            sys.exit(75)
        window.end_step(number)
finally:
    window.close()
    window.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "steps-1-3-rank-00000.json.gz",
        "steps-1-3-rank-00000.txt",
    ]


@pytest.mark.parametrize("setting", ["peak_tflops=-1", "profile_start=0", "profile_steps=-1", "log_every=0"])
def test_settings_out_of_range_are_refused(tmp_path: Path, setting: str) -> None:
    (tmp_path / "run.yaml").write_text("data: {train: shards/train}\n")
    with pytest.raises(UserError, match=rf"telemetry\.{setting.partition('=')[0]}"):
        load_config(tmp_path / "run.yaml", [f"telemetry.{setting}"])
