"""benchmarks/gpu.sh goes through all of its phases on the CPU, and loses nothing where one of them fails."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import phase, waits
from benchmarks.gpu.bars import judged
from benchmarks.gpu.memory import of_snapshot
from benchmarks.gpu.phases import PHASES
from benchmarks.gpu.report import LONGEST_LINE, Outcome, Report
from benchmarks.gpu.setting import Measurement, Skipped
from benchmarks.gpu.train_command import said_memory, succeed
from ttt_dist.util.console import main_guard

ROOT = Path(__file__).resolve().parents[2]
DECODED = {"seconds", "real_time_factor", "codes_s", "ms_per_forward", "first_span_s", "cold_s", "agrees"}
TRAINED = {"step_s", "useful_tokens_per_s", "memory_gb", "dry_run_gb", "graphs", "graph_breaks"}
KEYS: dict[str, dict[str, set[str]]] = {
    "machine": {
        "hardware": {"line"},
        "versions": {"torch"},
        "copy": {"tb_s"},
        "products": {"square_tflops", "head_tflops"},
    },
    "tests": {"test_timing": {"num_passed", "num_failed", "num_skipped"}},
    "train": {
        "none eager, 1 x 2048": {"step_s", "tokens_s", "useful_tflops", "memory_gb", "loss", "graphs", "warm_up_s"}
    },
    "decode": {"ours, batch 1": DECODED, "ours, batch 2": DECODED, "AR, batch 3": DECODED, "tidar, batch 2": DECODED},
    "zero1": {},
    "released": {"steps": {"tokens_s", "rows", "loss"}, "parts": {"attention_ms", "loss_ms", "attention_error"}},
    "parity": {"cpu": {"loss"}, "selective eager": {"loss_difference"}, "inference": {"loss_difference"}},
    "attention": {"4/2 heads of 16, 1 x 2048": {"output_error", "k_error", "over_dense", "forward_ms", "both_tflops"}},
    "loss": {"2 x 2048": {"ours_ms", "all_logits_ms", "targets_ms", "products_ms", "weight_error"}},
    "zero3": {"ZeRO-1, eager, selective": TRAINED},
    "encode": {"melvq": {"hours_per_hour", "recordings_s"}},
    "memory": {},
}
SKIPPED = {
    "machine": ["fp8 product"],
    "train": ["none compiled, 2 x 2048", "selective compiled, 2 x 2048"],
    "decode": ["without CUDA graphs, batch 1", "with cuDNN attention, batch 3"],
    "zero1": ["compiled", "compiled, fp8"],
    "parity": ["none compiled"],
    "attention": ["options, heads of 128"],
    "memory": ["snapshot"],
}


@pytest.mark.slow
@pytest.mark.timeout(1500)  # two minutes of an idle machine, which CI's is not
def test_every_phase_runs_on_the_cpu(tmp_path: Path) -> None:
    """A phase that rots is seen here; what needs a GPU is skipped by name."""
    command = ["bash", "benchmarks/gpu.sh", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    assert len(done.stdout) < 12_000
    phases = json.loads((tmp_path / "gpu.json").read_text())["phases"]
    assert list(phases) == list(PHASES) == list(KEYS)
    for name, outcome in phases.items():
        assert outcome["status"] == "ok", (name, outcome, log[-4000:])
        assert not [row for row in outcome["figures"].values() if "error" in row], (
            name,
            outcome,
            log[-4000:],
        )
        for measurement, keys in KEYS[name].items():
            assert keys <= outcome["figures"][measurement].keys(), (name, measurement)
        for measurement in SKIPPED.get(name, []):
            assert outcome["figures"][measurement]["skipped"], (name, measurement)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["phases"]["decode"]["figures"]["ours, batch 1"]["codes_s"] > 0
    (page,) = tmp_path.glob("*-gpu.md")
    assert all(f"## {name}: " in page.read_text() for name in PHASES)


@pytest.mark.slow
def test_a_measurement_that_fails_costs_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(phase, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def skip() -> dict[str, Any]:
        raise Skipped("needs CUDA")

    def late() -> Iterator[Measurement]:
        yield "good", lambda: {"x": 1}
        yield "bad", lambda: {"x": 1 / 0}
        yield "not here", skip
        yield "slow", lambda: now.__setitem__(0, 10.0) or {"x": 2}
        yield "late", lambda: {"x": 3}

    found: dict[str, Any] = {}
    words: list[str] = []

    def keep(name: str, figures: dict[str, Any]) -> None:
        words.append(f"{name} {figures.get('error', '')}")
        found[name] = figures

    phase.run(late(), 9.0, keep)
    assert found["good"]["x"] == 1 and found["slow"]["x"] == 2
    assert "ZeroDivisionError" in found["bad"]["error"] and "ZeroDivisionError" in capsys.readouterr().err
    assert found["not here"]["skipped"] == "needs CUDA"
    assert found["late"] == {"skipped": "no time left"}
    assert words[0] == "good not finished"  # what a phase that is killed leaves behind


def test_a_phase_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    assert driver.run_phase("machine", "cpu", tmp_path, log, left_s=1.0).status == "no time left"
    monkeypatch.setattr(driver, "LEAST_S", 0.0)
    outcome = driver.run_phase("machine", "cpu", tmp_path, log, left_s=0.2)
    assert outcome.status == "killed at its limit of 0 s" and outcome.figures == {}
    assert log.read_text() == "\n===== machine\n"


def test_a_killed_phase_leaves_its_figures_and_no_process(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.write_text('["a", {"error": "not finished"}]\n["a", {"x": 1}]\n["b", {"error": "not fini')
    assert driver.read_figures(figures) == {"a": {"x": 1}}
    assert driver.read_figures(tmp_path / "none") == {}
    nest = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", nest], start_new_session=True)
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    driver.end_family(process)
    assert process.returncode == -signal.SIGKILL
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_waits_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that torch warns of, and those that are there to wait; the line of ours that led there is named too."""
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def wait() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        torch.cuda.synchronize()

    found: Counter[str] = Counter()
    before = warnings.showwarning, torch.cuda.synchronize
    with waits.counted_waits(found):
        for _ in range(3):
            wait()
        main_guard(wait)
    assert (warnings.showwarning, torch.cuda.synchronize) == before
    assert sorted(found.values()) == [1, 1, 3, 3]
    assert all(place.startswith("unit/test_gpu_benchmark.py:") for place in found)
    assert sum(" < util/console.py:" in place for place in found) == 2


def test_waits_are_told_apart_by_how_often_they_come() -> None:
    found = waits.by_micro_batch({"loop.py:1": 2, "loss.py:7": 16, "loss.py:9": 8}, num_steps=2, num_micro_batches=4)
    assert found["waits_per_micro_batch"] == 3 and found["places_of_micro_batch"] == {"loss.py:7": 2, "loss.py:9": 1}
    assert found["waits_per_step"] == 1 and found["places_of_step"] == {"loop.py:1": 1}


def test_bars_by_hand() -> None:
    decoded = {"ours, batch 1": {"codes_s": 10.0, "real_time_factor": 0.05}, "ours, batch 32": {"codes_s": 100.0}}
    trained = {"none compiled, 2 packs": {"mfu": 0.5, "tokens_s": 90.0}, "none eager, 1 x 2048": {"mfu": 0.9}}
    memory = {"compiled": {"dry_run_gb": 9.5, "memory_gb": 10.0}, "compiled, fp8": {"skipped": "no such key"}}
    found = judged({"decode": decoded, "train": trained, "released": {"steps": {"tokens_s": 10.0}}, "zero1": memory})
    met = {what: bar["met"] for what, bar in found.items() if bar["met"] is not None}
    assert met == {
        "MFU of the model alone, compiled": True,
        "useful tokens/s over the released way": True,
        "dry run's memory, relative deviation": True,
        "real-time factor at batch 1": True,
        "codes/s at batch 32 over batch 1": False,
    }
    assert found["codes/s at batch 32 over batch 1"] == {"value": 10, "wanted": ">= 15", "met": False}


def test_a_snapshot_has_seen_memory_run_out_and_knows_whose_it_was(tmp_path: Path) -> None:
    def snapshot(action: str, frames: list[dict[str, Any]]) -> Path:
        held = {"state": "active_allocated", "size": 3, "frames": frames}
        blocks = [held, {**held, "size": 1, "frames": []}, {"state": "inactive", "size": 9, "frames": frames}]
        path = tmp_path / "snapshot"
        path.write_bytes(pickle.dumps({"segments": [{"blocks": blocks}], "device_traces": [[{"action": action}]]}))
        return path

    found = of_snapshot(snapshot("oom", [{"name": "forward"}]))
    assert (found["entries"], found["held_gb"], found["known_share"]) == (1, 4e-9, 0.75)
    with pytest.raises(AssertionError, match="out of memory"):
        of_snapshot(snapshot("alloc", [{"name": "forward"}]))
    with pytest.raises(AssertionError, match="none of 2 blocks"):
        of_snapshot(snapshot("oom", []))


def test_the_last_line_stays_short() -> None:
    report = Report("cuda", "bash benchmarks/gpu.sh", "abc")
    report.outcomes["train"] = Outcome(
        "ok", 1.0, {f"way {n}": {"mfu": 0.123456789, "kernels": {"k": 1.0}} for n in range(3)}
    )
    assert report.summary()["phases"]["train"]["figures"]["way 0"] == {"mfu": 0.1235}
    report.outcomes["decode"] = Outcome(
        "killed at its limit of 60 s", 60.0, {f"{n}": {"x": "y" * 90} for n in range(200)}
    )
    assert report.summary()["phases"]["decode"] == "killed at its limit of 60 s"
    assert len(json.dumps(report.summary())) < LONGEST_LINE


def test_a_command_that_fails_is_told_in_its_own_words(capfd: pytest.CaptureFixture[str]) -> None:
    succeed([sys.executable, "-c", "print('fine')"])
    with pytest.raises(RuntimeError, match="exit status 3, the last word"):
        succeed([sys.executable, "-c", "import sys; sys.stderr.write('x\\nthe last word\\n\\n'); sys.exit(3)"])
    assert capfd.readouterr().out == "fine\nx\nthe last word\n\n"


def test_memory_of_a_dry_run() -> None:
    assert said_memory("tokens     168,072\nmemory     1.5 GiB: weights 1.0 (of the fullest process)\n") == 1.5 * 2**30
    with pytest.raises(ValueError, match="names no memory: nothing"):
        said_memory("nothing")
