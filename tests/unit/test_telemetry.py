"""What is written about a run: records, events, wandb's one run, profiler windows."""

import errno
import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ttt_dist.config.loader import load_config
from ttt_dist.config.run import Config, TelemetryConfig, TrainConfig
from ttt_dist.telemetry.events import EVENTS, Events, read_events
from ttt_dist.telemetry.json_lines import append_line, read_metrics
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


def test_records_are_appended_to_and_never_rewritten_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 101)]
    path.write_text("".join(lines))
    inode = path.stat().st_ino
    open_metrics(tmp_path, 100, {}, "off", "p", False).log(101, {"loss": 1.0})
    assert path.stat().st_ino == inode and len(records(tmp_path)) == 101
    with monkeypatch.context() as patched:  # the disk fills up while the records to keep are written

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr("os.fsync", full)
        again = open_metrics(tmp_path, 50, {}, "off", "p", False)
    assert len(records(tmp_path)) == 101
    assert capsys.readouterr().err.count("the run goes on without it") == 1
    again.log(51, {"loss": 2.0})
    assert [record["step"] for record in read_metrics(path)] == list(range(1, 52))
    open_metrics(tmp_path, 30, {}, "off", "p", False)
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 31))


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b"[]", b'{"step": []}', b'{"step": 1e400}', b"[" * 99_999, b'{"loss": 1}']
)
def test_a_damaged_record_is_left_out_with_a_word(
    tmp_path: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    open_metrics(tmp_path, 2, {}, "off", "p", False).log(3, {})
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]
    assert f"warning: {path}: line(s) 2 are damaged, and are left out" in capsys.readouterr().err


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, '{"step": 1}')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 7, hard))  # as a disk with so much space
    try:
        with pytest.raises(OSError, match="too large"):
            append_line(path, '{"step": 2}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_line(path, '{"step": 3}')
    assert [record["step"] for record in records(tmp_path)] == [1, 3]


def test_tensorboard_hides_what_is_done_again_and_shows_the_rest(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start in (0, 2):
        metrics = open_metrics(tmp_path, start, {}, "off", "p", True)
        for step in (start + 1, start + 2, start + 3):
            metrics.log(step, {"loss": float(10 * start + step)})
        metrics.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(scalar.step, scalar.value) for scalar in found] == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 25.0)]


@pytest.mark.slow
def test_wandb_keeps_what_a_run_does_again_after_going_back(tmp_path: Path) -> None:
    import wandb

    for start in (0, 10):  # back from step 30
        metrics = open_metrics(tmp_path, start, {}, "offline", "p", False)
        for step in range(start + 10, 40, 10):
            metrics.log(step, {"loss": float(start + step)})
            metrics.log(step, {"eval_loss": 1.0})
        metrics.close()
    wandb.teardown()  # as at the exit of a process: the last rows are written now
    rows = [row for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")) for row in history(path)]
    assert [(row["step"], row["loss"], row["eval_loss"]) for row in rows] == [
        (10, 10.0, 1.0), (20, 20.0, 1.0), (30, 30.0, 1.0), (20, 30.0, 1.0), (30, 40.0, 1.0),
    ]  # fmt: skip
    assert [row["_step"] for row in rows] == [10, 20, 30, 40, 50]  # W&B drops a step that is not above all before


def history(path: Path) -> list[dict]:
    """The rows in a file that W&B keeps offline."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for data in log_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({"_step": record.history.step.num, **items})
    return rows


def log_records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log: checksum, length and kind (1 whole, 2 first, 3 middle, 4 last) before each piece, blocks of 32 kB."""
    at, whole = 7, b""  # behind W&B's own header
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


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
