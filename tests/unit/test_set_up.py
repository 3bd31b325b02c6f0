"""The start of a training process, with all that it calls in other hands. (The real one: test_faults, test_local_saves.)"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from ttt_dist import train
from ttt_dist.checkpoint import restore
from ttt_dist.launch import process_group
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.telemetry.events import read_events
from ttt_dist.training import plan as plans
from ttt_dist.training import watchdog
from ttt_dist.util.errors import LostProcessError

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    watching: list[watchdog.Watchdog] = []

    def watch(*arguments: Any) -> watchdog.Watchdog:
        watching.append(real(*arguments))
        return watching[-1]

    real = watchdog.Watchdog
    monkeypatch.setattr(watchdog, "Watchdog", watch)
    for name in ("init_process_group", "log_to_files"):
        monkeypatch.setattr(process_group, name, MagicMock())
    found = MagicMock(**{"mesh.tensor": 1, "mesh.rank": 0})
    found.config.run_dir, found.config.telemetry.memory_history = str(tmp_path), False
    found.config.guard.start_timeout, found.config.guard.stop_after = 60.0, 0.0
    yield found
    for one in watching:
        one.close()  # or it ends this process in a minute


def test_a_process_that_is_lost_before_the_model_is_built_is_lost_like_any_other(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a traceback and 1 for a status, nobody would start the run again."""
    lost = MagicMock(side_effect=RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    monkeypatch.setattr(restore, "complete_local_saves", lost)
    with pytest.raises(LostProcessError, match="start: lost a connection"):
        train.set_up(plan, DistInfo(rank=0, world_size=2, local_rank=0, local_size=2))
    assert [event["event"] for event in read_events(tmp_path)] == ["fault"]


def test_with_a_checkpoint_of_local_saves_files_are_looked_for_by_one_process_too(
    plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand that look for each of thousands of files are too many."""
    prepare = MagicMock(side_effect=InterruptedError)  # far enough
    monkeypatch.setattr(restore, "complete_local_saves", lambda *_: True)
    monkeypatch.setattr(plans, "prepare", prepare)
    with pytest.raises(InterruptedError):
        train.set_up(plan, DistInfo(rank=1, world_size=2, local_rank=1, local_size=2))
    assert prepare.call_args.kwargs == {"trusts_files": True}
