"""reshard holds one weight at a time, however large the checkpoint and its files are; a run that goes on in another layout holds
its own share and a weight."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks import reshard
from tests.distributed.cases import ROOT, Layout
from tests.distributed.launch import run_distributed
from tests.distributed.reshard_memory import SMALL, go_on, gradients, save, share
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.util.errors import UserError

LARGE = reshard.SHAPES["toy"]
SPLITS = [Layout(3, 2, dp=2), Layout(1, 2, tensor=2)]
SLACK = 60e6  # gaps that allocators cannot give back, and a run of 16 M numbers
IS_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

MEASURE = """
import json, sys, threading
from pathlib import Path
from ttt_dist.checkpoint.conversion import reshard

def own():  # pages of mapped files are not this process's own
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

class Watch(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.peak = threading.Event(), 0
    def run(self):
        while not self.ended.wait(0.001):
            self.peak = max(self.peak, own())

folder = Path(sys.argv[1])
reshard(folder / "small", folder / "warm")  # what is imported on the way is no part of it
watch, before = Watch(), own()
watch.start()
reshard(folder / "large", folder / "out")
watch.ended.set()
watch.join()
print(json.dumps(watch.peak - before))
"""


@IS_LINUX
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_memory_is_that_of_a_weight_or_two(split: Layout, tmp_path: Path) -> None:
    run_distributed([(save, (split, {tmp_path / "large": LARGE, tmp_path / "small": SMALL}))], 2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])
    native = next((tmp_path / "large").glob("step-*"))
    largest_file = max(path.stat().st_size for path in native.iterdir())
    largest_weight = LARGE.largest_weight
    told = f"{peak / 1e6:.0f} MB for a file of {largest_file / 1e6:.0f} MB, a weight of {largest_weight / 1e6:.0f} MB"
    assert largest_file > 200e6
    assert peak <= 2 * largest_file, told
    assert peak <= 2 * largest_weight, told
    shapes = DeepSpeedCheckpoint(native).shapes
    assert max(4 * shape[0] * shape[-1] for shape in shapes.values()) == largest_weight
    shutil.rmtree(tmp_path)


@IS_LINUX
@pytest.mark.parametrize("split", [Layout(1, 2, dp=2), Layout(3, 2, tensor=2), Layout(0, 2, tensor=2)], ids=str)
def test_going_on_takes_a_share_and_a_weight(split: Layout, tmp_path: Path) -> None:
    run_distributed([(save, (SPLITS[0], {tmp_path / "large": LARGE, tmp_path / "small": SMALL}))], 2)
    (told,) = run_distributed([(go_on, (split, LARGE, tmp_path / "large", tmp_path / "small"))], 2)
    least = share(LARGE, split)
    own = least + gradients(LARGE, split)  # zeros, not all of which are touched
    for memory in told:
        assert own + SLACK >= memory.kept >= 0.98 * least > 100e6, (own, memory)
        assert memory.peak <= own + 2 * LARGE.largest_weight + SLACK, (own, memory)
    shutil.rmtree(tmp_path)


@IS_LINUX
def test_the_benchmark_measures_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = "ZeRO 3", "tensor 2"
    monkeypatch.setattr(reshard, "CASES", {source: [target]})
    words = ["--shape", "toy", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "result.md")]
    monkeypatch.setattr("sys.argv", ["reshard", *words])
    with suppress(UserError):  # a run of 16 M numbers decides at this size
        reshard.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["from"], row["to"], row["rank"]) for row in figures["processes"]] == [
        (source, target, 0),
        (source, target, 1),
    ]
    for row in figures["processes"]:
        own = row["share"] + row["gradients"]
        assert own + SLACK / 1e6 >= row["kept"] >= 0.98 * row["share"] > 100, row
        assert row["building"] <= row["peak"] <= own + 2 * row["largest_weight"] + SLACK / 1e6, row
        assert row["is_within"] == (row["peak"] <= own + row["largest_weight"])
    assert (tmp_path / "result.md").read_text().count(f"| {source} | {target} |") == 2
    assert not list((tmp_path / "work").iterdir())
