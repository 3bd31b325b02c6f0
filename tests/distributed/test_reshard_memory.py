"""reshard holds one weight at a time, however large the checkpoint and its files are; a run that goes on in another layout holds
its own share and a weight."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.cases import ROOT, Layout
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config

NUM_ROWS = 20_480
LARGE = ModelConfig(hidden_size=512, num_layers=4, num_heads=8, num_kv_heads=8, ffn_hidden_size=2048)
SPLITS = [Layout(3, 2, dp=2), Layout(1, 2, tensor=2)]

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


def save(split: Layout, folder: Path) -> None:
    """Native checkpoints of a large and a small model of random weights; their moments are random too."""
    import torch

    from ttt_dist.checkpoint import manager
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.parallelize import parallelize

    mesh = split.mesh()
    for name, model, num_rows in (("large", LARGE, NUM_ROWS), ("small", split.config().model, 128)):
        config: Config = replace(split.config(), model=model)
        layout = replace(LAYOUT, padded_vocab_size=num_rows)
        engine = parallelize(config, layout, mesh, RandomWeights())
        adam = engine.optimizer.optimizer
        masters: Any = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
        for master in masters or [master for group in adam.param_groups for master in group["params"]]:
            moments = {key: torch.rand_like(master) for key in ("exp_avg", "exp_avg_sq")}
            adam.state[master] = {"step": torch.tensor(1.0), **moments}
        metadata = manager.CheckpointMetadata.of_run(config, layout, dist.get_world_size())
        manager.save(engine, folder / name, 1, metadata, {}, CheckpointConfig())
        groups.leave()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_memory_is_that_of_a_weight_or_two(split: Layout, tmp_path: Path) -> None:
    run_distributed([(save, (split, tmp_path))], 2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])
    native = next((tmp_path / "large").glob("step-*"))
    largest_file = max(path.stat().st_size for path in native.iterdir())
    largest_weight = 4 * LARGE.hidden_size * NUM_ROWS
    told = f"{peak / 1e6:.0f} MB for a file of {largest_file / 1e6:.0f} MB, a weight of {largest_weight / 1e6:.0f} MB"
    assert largest_file > 200e6
    assert peak <= 2 * largest_file, told
    assert peak <= 2 * largest_weight, told
    shapes = DeepSpeedCheckpoint(native).shapes
    assert max(4 * shape[0] * shape[-1] for shape in shapes.values()) == largest_weight
    shutil.rmtree(tmp_path)


class Watch(threading.Thread):
    """The peak of this process's own pages since it was started; those of mapped files are nobody's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.peak = threading.Event(), own_pages()

    def run(self) -> None:
        while not self.ended.wait(0.001):
            self.peak = max(self.peak, own_pages())

    def passing(self) -> int:
        """By how much it was above what is there now: pages that were needed for a time."""
        self.ended.set()
        self.join()
        return self.peak - own_pages()


def own_pages() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def go_on(split: Layout, folder: Path) -> tuple[int, int]:
    """Load the large checkpoint into an engine of another layout: bytes needed beyond those that stay, and this process's moments."""
    from ttt_dist.checkpoint.optimizer_state import load_optimizer_state
    from ttt_dist.checkpoint.universal import open_checkpoint
    from ttt_dist.model.layers import zero_weights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.deepspeed_adapter import masters
    from ttt_dist.parallel.parallelize import parallelize

    config: Config = replace(split.config(), model=LARGE)
    layout = replace(LAYOUT, padded_vocab_size=NUM_ROWS)
    for name in ("small", "large"):  # what is imported on the way is no part of it
        if name == "large":
            engine = parallelize(config, layout, split.mesh(), zero_weights)
            watch = Watch()
            watch.start()
        else:
            small = split.config()
            engine = parallelize(small, replace(LAYOUT, padded_vocab_size=128), split.mesh(), zero_weights)
        source = open_checkpoint(next((folder / name).glob("step-*")))
        load_optimizer_state(source, engine, split.mesh(), source.config.model)
        if name == "small":
            groups.leave()
    passing = watch.passing()
    share = sum(2 * 4 * master.numel() for master in masters(engine))
    groups.leave()
    return passing, share


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("split", [Layout(1, 2, dp=2), Layout(3, 2, tensor=2), Layout(0, 2, tensor=2)], ids=str)
def test_going_on_takes_a_share_and_a_weight(split: Layout, tmp_path: Path) -> None:
    run_distributed([(save, (SPLITS[0], tmp_path))], 2)
    (told,) = run_distributed([(go_on, (split, tmp_path))], 2)
    largest_weight = 4 * LARGE.hidden_size * NUM_ROWS
    for passing, share in told:
        assert share > 100e6
        assert passing <= 1.1 * largest_weight, f"{passing / 1e6:.0f} MB"
    shutil.rmtree(tmp_path)
