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


class Stream:
    """A queue of the device. It stands still, or keeps the host waiting, until others have done what they have."""

    def wait_event(self, event: object) -> None:
        Group.hands.move(0.5)

    def synchronize(self) -> None:
        Group.hands.move(0.75)


MAIN, OTHER = Stream(), Stream()


class Event:
    """A CUDA event: `record` queues it behind work that the device has yet to do."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        assert stream is MAIN
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
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: MAIN)
    before = Group.allreduce, Work.wait
    yield Group.hands
    assert (Group.allreduce, Work.wait) == before  # nothing is left behind


def run_step(
    device: str, hands: Hands, in_forward: bool = False, in_backward: bool = False, is_sample: bool = False
) -> timing.StepTimes:
    """Two micro-batches: 3 s forward, 5 s backward, 1 s of update; 10 s before and after belong to no step."""
    group = Group()
    clock = StepClock(torch.device(device), not in_forward, is_sample)
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


def test_on_cuda_own_work_of_a_sampled_step_is_all_but_what_was_waited_for(hands: Hands) -> None:
    times = run_step("cuda", hands, in_forward=True, in_backward=True, is_sample=True)
    assert times.seconds == {"forward": 10.5, "backward": 14.5, "optimizer": 2}  # phases are as in any other step
    assert times.own_s == 18


def test_on_cuda_what_another_queue_waits_for_is_beside_the_computation(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StepClock(torch.device("cuda"), False, is_sample=True) as clock:
        hands.move(3)
        MAIN.wait_event(None)
        OTHER.synchronize()  # the host: meanwhile nothing comes into the computation's queue
        clock.charge("forward")
        with monkeypatch.context() as other:
            other.setattr(torch.cuda, "current_stream", lambda: OTHER)
            Group().allreduce()
        OTHER.wait_event(None)
        clock.charge("backward")
    assert clock.times() == ({"forward": 4.25, "backward": 0.75}, 3.75)


@pytest.mark.parametrize(
    ("device", "is_alone", "is_sample", "is_watched"),
    [
        ("cuda", True, True, False),
        ("cuda", False, False, False),
        ("cuda", False, True, True),
        ("cpu", True, False, True),
    ],
)
def test_on_cuda_torch_is_left_as_it_is_but_in_a_sampled_step(
    device: str, is_alone: bool, is_sample: bool, is_watched: bool, hands: Hands
) -> None:
    """Each collective would go through Python at every step."""
    before = Group.allreduce, Stream.wait_event
    with StepClock(torch.device(device), is_alone, is_sample):
        assert (Group.allreduce is not before[0]) == is_watched
        assert (Stream.wait_event is not before[1]) == (is_watched and device == "cuda")
    assert (Group.allreduce, Stream.wait_event) == before


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
    for place in timing._device_waits():
        assert callable(getattr(place.owner, place.name))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="lets a queue of a GPU wait for another one")
@pytest.mark.parametrize("how", ["wait_stream", "synchronize"])
def test_on_a_gpu_own_work_is_without_what_another_queue_does(how: str) -> None:
    a, side = torch.randn(4096, 4096, device="cuda"), torch.cuda.Stream()

    def work(number: int) -> None:
        for _ in range(number):
            a @ a

    work(3)
    with torch.cuda.stream(side):
        work(3)
    torch.cuda.synchronize()
    with StepClock(a.device, False, is_sample=True) as clock:
        work(40)
        clock.charge("forward")
        side.wait_stream(torch.cuda.current_stream())  # or both would share the device
        with torch.cuda.stream(side):
            work(80)
        torch.cuda.current_stream().wait_stream(side) if how == "wait_stream" else side.synchronize()
        clock.charge("backward")
    times = clock.times()
    assert times.seconds["backward"] == pytest.approx(2 * times.seconds["forward"], rel=0.2)
    assert times.own_s == pytest.approx(times.seconds["forward"], rel=0.2)
