"""Requests to stop: signals and time limits; saves by the clock. (That all agree: test_faults, test_agree of tests/distributed.)"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist

from ttt_dist.checkpoint import manager
from ttt_dist.config.run import CheckpointConfig
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.training.checkpointing import Checkpointing
from ttt_dist.training.stop_signals import MARGIN_S, SignalHandler

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_heard_and_named(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = SignalHandler()
    try:
        assert stop.should_stop(CPU) is None
        os.kill(os.getpid(), number)
        assert stop.should_stop(CPU) == number.name
        assert stop.should_stop(CPU) == number.name
    finally:
        stop.close()
    assert signal.getsignal(number) == before


def test_a_second_interrupt_is_not_waited_for() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs that ignore it
    stop = SignalHandler()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.close()
        signal.signal(signal.SIGINT, before)


def test_stop_after(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = SignalHandler(stop_after_s=100.0)
    assert stop.should_stop(CPU) is None
    now, of_day = time.monotonic(), time.time()
    for jump in (-1e6, 1e6):  # somebody sets the clock
        monkeypatch.setattr(time, "time", lambda jump=jump: of_day + jump)
        assert stop.should_stop(CPU) is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 101)
    assert stop.should_stop(CPU) == "the time limit is near"
    stop.close()


@pytest.mark.parametrize(
    ("length_s", "longest_save_s", "left_s", "stops"),
    [
        (3600, 0.0, MARGIN_S + 5, False),
        (3600, 0.0, MARGIN_S - 5, True),
        (3600, 20.0, MARGIN_S + 35, True),  # two saves must fit
        (3600, 20.0, MARGIN_S + 45, False),
        (60, 0.0, 8, False),  # a tenth of a short job
        (60, 0.0, 4, True),
    ],
)
def test_the_end_of_a_slurm_job(
    length_s: float, longest_save_s: float, left_s: float, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = time.time() + left_s
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(end)))
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(int(end - length_s)))
    stop = SignalHandler()
    stop.longest_save_s = longest_save_s
    assert (stop.should_stop(CPU) is not None) == stops
    stop.close()


@pytest.mark.parametrize(
    ("checkpoint", "saved"),
    [
        (CheckpointConfig(save_every_minutes=10), [3, 6]),  # 10 minutes after the start, and after the end of a save
        (CheckpointConfig(save_every_minutes=10, save_every=4), [3, 4, 7, 8]),  # a save by steps counts as one
        (CheckpointConfig(save_every=4), [4, 8]),
        (CheckpointConfig(), []),
    ],
)
def test_saves_by_the_clock(checkpoint: CheckpointConfig, saved: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 4 minutes, saves of 15."""
    minute, found, stop = 0.0, [], SignalHandler()
    monkeypatch.setattr(time, "monotonic", lambda: 60 * minute)
    trainer: Any = MagicMock(start_step=0, is_last=False, stop=stop, **{"guard.in_a_row": 0})
    trainer.config.checkpoint, trainer.is_due = checkpoint, lambda step, every: every > 0 and step % every == 0

    def save(_: Any, step: int) -> None:
        nonlocal minute
        minute += 15
        found.append(step)

    callback = Checkpointing()
    monkeypatch.setattr(callback, "_save", save)
    for step in range(1, 9):
        callback.pre_step(trainer, step)
        minute += 4
        assert stop.should_stop(CPU) is None
        callback.post_step(trainer, step, MagicMock())
    stop.close()
    assert found == saved


def test_what_a_local_save_has_waited_is_not_told_of_the_checkpoint_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = MagicMock(**{"stop.longest_save_s": 0.0})
    trainer.config.checkpoint = CheckpointConfig(save_every=4, local_every=1, local_dir="local")
    monkeypatch.setattr(manager, "save", lambda *_: Path("step-00000004"))
    callback = Checkpointing()
    callback.saver = MagicMock(waited_s=1000.0, **{"wait.return_value": None})
    callback._save(trainer, 4)
    ((kind, step), values) = trainer.tell.call_args
    assert (kind, step) == ("checkpoint", 4) and values["seconds"] < 1000
