"""`mpirun` as the launcher: its processes find each other over MPI, and train as any others."""

import sys
from pathlib import Path

import pytest

from tests.distributed.small_run import TRAIN, execute, make_run, records
from tests.shared_work import AS_ROOT, mpirun


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    config = str(make_run(tmp_path, checkpoint={"save_every": 0}))
    both, alone = tmp_path / "both", tmp_path / "alone"
    for launcher, run in ((mpirun(2), both), ([], alone)):
        done = execute([*launcher, sys.executable, TRAIN, "--config", config, f"run_dir={run}"], **AS_ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("from step 0") == 1, done.stdout  # rank 0 alone talks
    assert (both / "logs" / "rank-00001.log").exists()
    for mine, other in zip(records(both), records(alone), strict=True):
        for key in {"loss", "ar_loss", "nar_loss", "grad_norm", "eval_loss"} & set(mine):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key


def test_a_mistake_ends_all_ranks(tmp_path: Path) -> None:
    config = str(make_run(tmp_path))
    done = execute([*mpirun(2), sys.executable, TRAIN, "--config", config, "train.global_batch=3"], **AS_ROOT)
    assert done.returncode == 1
    assert done.stderr.count("error: train.global_batch=3") == 1
