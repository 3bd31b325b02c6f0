"""A reader of train.py's start goes through few modules: those that its two files, train.py and plan.py, call by hand."""

import json
import sys
from pathlib import Path

from tests.distributed.small_run import execute, make_run

STARTERS = ("ttt_dist.train", "ttt_dist.training.plan")
MOST = 15


def test_the_start_goes_through_few_modules(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    done = execute([sys.executable, "-m", "tests.start_path", "--config", str(config), "train.steps=1"])
    assert done.returncode == 0, done.stderr
    calls = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    rooms = {*STARTERS, *(module for starter in STARTERS for module in calls[starter])}
    assert len(rooms) <= MOST, "\n".join(sorted(rooms))
