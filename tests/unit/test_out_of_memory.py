"""A device without memory: the snapshot, the line that says what to lower, and what is recorded before. torch.cuda is played."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.distributed.random_packs import LAYOUT
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import Config, TelemetryConfig, TrainConfig
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.telemetry.events import Events, read_events
from ttt_dist.training import out_of_memory, watchdog
from ttt_dist.util.errors import UserError

SAID = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 15.33 GiB is free. "
    "See documentation for Memory Management  (https://docs.pytorch.org)"
)
DOING = "step 7: forward and backward"


def plan_in(folder: Path, rank: int = 0, size: int = 2, history: bool = False, **train: Any) -> Any:
    """As much of a TrainPlan as is asked."""
    config = Config(
        run_dir=str(folder),
        model=ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=64),
        train=TrainConfig(**train),
        telemetry=TelemetryConfig(memory_history=history),
    )
    mesh = Mesh.of(config.parallel, size, rank)
    metadata = SimpleNamespace(zero_stage=1, layout=LAYOUT)
    return SimpleNamespace(config=config, mesh=mesh, metadata=metadata, loader=SimpleNamespace(seq_len=64))


def fail(plan: Any) -> str:
    """Run out of memory; the line that comes of it."""
    with pytest.raises(UserError) as found, out_of_memory.out_of_memory_told(plan, lambda: DOING):
        raise torch.OutOfMemoryError(SAID)
    return str(found.value)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A GPU; what was asked to be recorded."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **named: asked.append(named))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda **_: {"segments": [1], "device_traces": []})
    return asked


def test_the_line_names_rank_step_request_estimate_and_remedies(tmp_path: Path, device: list[dict[str, Any]]) -> None:
    said = fail(plan_in(tmp_path, rank=1, micro_batch=4))
    snapshot = tmp_path / "logs" / "rank-00001.memory.pickle"
    assert pickle.loads(snapshot.read_bytes())["segments"] == [1]
    assert said.startswith("rank 1 (")
    for part in (
        DOING,
        "Tried to allocate 20.00 GiB",
        "15.33 GiB is free. The dry run's",
        "MiB: weights",
        str(snapshot),
    ):
        assert part in said
    assert "documentation" not in said
    assert (
        "a train.micro_batch below 4 or train.activation_checkpointing=selective or deepspeed=ds_configs/zero2" in said
    )
    assert device == [] and "telemetry.memory_history=true" in said


def test_history_is_recorded_within_bounds_where_asked(tmp_path: Path, device: list[dict[str, Any]]) -> None:
    assert "memory_history" not in fail(plan_in(tmp_path, history=True))
    assert device == [{"stacks": "python", "max_entries": out_of_memory.MAX_ENTRIES}]


def test_torch_takes_what_it_is_asked_to_record() -> None:
    import inspect

    inspect.signature(torch.cuda.memory._record_memory_history).bind(stacks="python", max_entries=1)


def test_nothing_is_recorded_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **_: pytest.fail("recorded"))
    with out_of_memory.out_of_memory_told(plan_in(tmp_path, history=True), lambda: DOING):
        pass


def test_a_snapshot_that_cannot_be_written_hides_no_word(
    tmp_path: Path, device: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file")
    assert "Tried to allocate" in fail(plan_in(tmp_path))
    assert "cannot be written" in capsys.readouterr().err


def test_other_errors_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="another"),
        out_of_memory.out_of_memory_told(plan_in(tmp_path), lambda: DOING),
    ):
        raise RuntimeError("another")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("train", "stage", "mesh", "told"),
    [
        ({"micro_batch": 1, "activation_checkpointing": "full"}, 3, {"data": 8}, ["parallel.tensor=4"]),
        ({"micro_batch": 1}, 1, {"data": 8, "pipeline": 2}, ["train.activation_checkpointing=selective", "parallel.tensor=4"]),
        (
            {"micro_batch": 1, "activation_checkpointing": "selective"}, 2, {"data": 8},
            ["train.activation_checkpointing=full", "deepspeed=ds_configs/zero3.json", "parallel.tensor=4"],
        ),
        ({"activation_checkpointing": "full"}, 1, {"data": 1}, ["parallel.tensor=4"]),
    ],
)  # fmt: skip
def test_remedies_are_those_that_are_left(
    train: dict[str, Any], stage: int, mesh: dict[str, int], told: list[str]
) -> None:
    shape = Mesh(**{"tensor": 2, "ulysses": 1, "pipeline": 1, "rank": 0, **mesh})
    assert out_of_memory.remedies(Config(train=TrainConfig(**train)), shape, stage) == told


def test_the_diary_has_the_line(tmp_path: Path, device: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the watchdog, in which the command works."""
    events = Events(tmp_path)
    monkeypatch.setattr(watchdog, "run_store", lambda: None)
    monkeypatch.setattr(watchdog.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(watchdog.dist, "get_world_size", lambda: 1)
    watching = watchdog.Watchdog(tmp_path, 60.0, lambda step, reason: events.log("fault", step, reason=reason))
    watching.mark(7, "forward and backward", 60.0)
    try:
        with pytest.raises(UserError), watching.faults_told(plan_in(tmp_path)):
            raise torch.OutOfMemoryError(SAID)
    finally:
        watching.close()
    (event,) = read_events(tmp_path)
    assert (event["event"], event["step"]) == ("fault", 7)
    assert json.dumps(DOING)[1:-1] in event["reason"]
