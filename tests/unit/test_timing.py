"""The phases of a step add up to it, with and without collectives in them; a clock that the tests turn stands for time."""

from collections.abc import Iterator

import pytest
import torch

from ttt_dist.training import step_timing as timing
from ttt_dist.training.step_timing import StepClock


class Hands:
    """Time as the tests want it."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class Group:
    """A process group whose collectives take time to begin, and more to wait for."""

    hands: Hands

    def allreduce(self) -> "Work":
        self.hands.move(0.25)
        return Work()


for name in timing.COLLECTIVES:
    if name != "allreduce":
        setattr(Group, name, lambda self: None)


class Work:
    def wait(self) -> None:
        Group.hands.move(2.0)


class Event:
    """A CUDA event: `record` queues it behind work that the device has yet to do."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = Group.hands.now

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.time - self.time)

    def synchronize(self) -> None:
        Group.hands.move(7.0)  # whatever is still waited for is not in any phase


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    Group.hands = Hands()
    monkeypatch.setattr(timing, "time", Group.hands)
    monkeypatch.setattr(timing.dist, "ProcessGroup", Group)
    monkeypatch.setattr(timing.dist, "Work", Work)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    before = Group.allreduce, Work.wait
    yield Group.hands
    assert (Group.allreduce, Work.wait) == before  # nothing is left behind


def run_step(device: str, hands: Hands, in_forward: bool = False, in_backward: bool = False) -> timing.StepTimes:
    """Two micro-batches: 3 s forward, 5 s backward, 1 s of update; 10 s before and after belong to no step."""
    group = Group()
    clock = StepClock(torch.device(device), forward_is_alone=not in_forward)
    hands.move(10)
    group.allreduce().wait()
    with clock:
        for _ in range(2):
            hands.move(3)
            if in_forward:
                group.allreduce().wait()
            clock.charge("forward")
            hands.move(4)
            work = group.allreduce() if in_backward else None
            hands.move(1)
            if work:
                work.wait()
            clock.charge("backward")
            hands.move(1)
            clock.charge("optimizer")
    hands.move(10)
    group.allreduce().wait()
    return clock.times()


def test_a_step_without_collectives_is_all_own_work(hands: Hands) -> None:
    times = run_step("cpu", hands)
    assert times.seconds == {"communication": 0, "forward": 6, "backward": 10, "optimizer": 2}
    assert times.own_s == 18


def test_on_cpu_collectives_are_taken_out_of_the_phases(hands: Hands) -> None:
    times = run_step("cpu", hands, in_forward=True, in_backward=True)
    assert times.seconds == {"communication": 9, "forward": 6, "backward": 10, "optimizer": 2}
    assert sum(times.seconds.values()) == 18 + 4 * 2.25
    assert times.own_s == 18


def test_on_cuda_phases_hold_their_collectives_and_own_work_is_a_forward_pass_without(hands: Hands) -> None:
    times = run_step("cuda", hands, in_backward=True)
    assert times.seconds == {"forward": 6, "backward": 14.5, "optimizer": 2}
    assert times.own_s == 6
    assert run_step("cuda", hands, in_forward=True).own_s is None


@pytest.mark.parametrize(("device", "is_watched"), [("cuda", False), ("cpu", True)])
def test_on_cuda_torch_is_left_as_it_is(device: str, is_watched: bool, hands: Hands) -> None:
    """Nothing there asks for the time of collectives, and each would go through Python at every step."""
    before = Group.allreduce
    with StepClock(torch.device(device), True):
        assert (Group.allreduce is not before) == is_watched


def test_an_exception_leaves_torch_as_it_was(hands: Hands) -> None:
    with pytest.raises(KeyError), StepClock(torch.device("cpu"), True):
        raise KeyError


def test_torch_has_what_is_watched() -> None:
    """A method that this torch lacks would be an error in the first step; one that is new would go unheard."""
    for name in timing.COLLECTIVES:
        assert callable(getattr(torch.distributed.ProcessGroup, name))
    words = ("gather", "reduce", "alltoall", "broadcast", "scatter", "send", "recv")
    known = {*timing.COLLECTIVES, "__reduce__", "__reduce_ex__"}
    found = {name for name in dir(torch.distributed.ProcessGroup) if any(word in name.lower() for word in words)}
    assert found <= known


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times a queue of work on a GPU")
def test_on_a_gpu_the_phases_are_those_of_the_device() -> None:
    import time

    a = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with StepClock(a.device, True) as clock:
        for phase, number in (("forward", 40), ("backward", 80)):
            for _ in range(number):
                a @ a
            clock.charge(phase)
        float((a @ a)[0, 0])
        clock.charge("optimizer")
    wall_s, times = time.perf_counter() - begin, clock.times()
    assert sum(times.seconds.values()) == pytest.approx(wall_s, rel=0.05)
    assert times.seconds["backward"] == pytest.approx(2 * times.seconds["forward"], rel=0.2)
