"""Where the time of a step goes: every moment of it belongs to one phase, and the phases add up to the step.

On CPU a collective keeps its process waiting, so what is spent in collectives is known. It is taken out of the phases and
is one of its own, `communication`; the rest is this process's own work.

On CUDA the host only queues the work. Phases are cut by events in the queue, which cost nothing and are read when the
step's loss has been waited for anyway. Collectives run beside the computation, in queues of their own and of DeepSpeed's, so
no time is said to be theirs: the phases contain what was waited for. Where the forward pass has no collective, it is the own
work that compares. Elsewhere own work is found in some steps only: events around all that lets the queue of the
computation wait for another queue, or the host for one, say how long it stood still; the rest is own work. Other steps
leave torch as it is.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

COMMUNICATION = "communication"

# Where all of torch.distributed passes, whoever calls it: torch's functions, DeepSpeed, Megatron, ourselves.
COLLECTIVES = (
    *("_allgather_base", "_reduce_scatter_base", "allgather", "allgather_coalesced", "allgather_into_tensor_coalesced"),
    *("allreduce", "allreduce_coalesced", "alltoall", "alltoall_base", "barrier", "broadcast", "gather"),
    *("recv", "recv_anysource", "reduce", "reduce_scatter", "reduce_scatter_tensor_coalesced", "scatter", "send"),
)


class StepTimes(NamedTuple):
    """One process's step, without its wait for data."""

    seconds: dict[str, float]
    """By phase, communication included where it is known."""
    own_s: float | None
    """Seconds of own work that compare between processes: all but what was waited for, or on CUDA a forward pass without
    collectives; None: not measured."""


@dataclass
class _Stretch:
    """From one mark to the next."""

    phase: str
    begin: Any
    end: Any
    waits: list[tuple[Any, Any]]
    """Their beginnings and ends."""


class StepClock:
    """Use it as a context around a step, and `charge` a phase at its end.

    `forward_is_alone`: the layout has no collective in the forward pass. `is_sample`: on CUDA, where it has, find own work in
    this step; it costs some microseconds for each collective.
    """

    def __init__(self, device: torch.device, forward_is_alone: bool, is_sample: bool = False) -> None:
        self.on_cuda, self.forward_is_alone = device.type == "cuda", forward_is_alone
        self.watches = not self.on_cuda or (is_sample and not forward_is_alone)
        self._stretches: list[_Stretch] = []
        self._waits: list[tuple[Any, Any]] = []

    def __enter__(self) -> "StepClock":
        self._stream = torch.cuda.current_stream() if self.on_cuda else None
        self._watching: AbstractContextManager[None] = nullcontext()
        if self.watches:
            self._watching = _watched(_device_waits() if self.on_cuda else _host_waits(), self._waiting)
        self._watching.__enter__()
        self._last = self._mark()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watching.__exit__(*exception)

    def charge(self, phase: str) -> None:
        """Everything since the last charge, or the start, was `phase`."""
        mark = self._mark()
        self._stretches.append(_Stretch(phase, self._last, mark, self._waits))
        self._last, self._waits = mark, []

    def times(self) -> StepTimes:
        """The sums. On CUDA it waits for the last charge: call it after something that waits for the device anyway."""
        if self.on_cuda:
            self._last.synchronize()
        seconds: dict[str, float] = {} if self.on_cuda else {COMMUNICATION: 0.0}
        busy_s = 0.0
        for stretch in self._stretches:
            length = self._between(stretch.begin, stretch.end)
            waited_s = sum(self._between(*wait) for wait in stretch.waits)
            busy_s += length - waited_s
            if not self.on_cuda:
                length -= waited_s
                seconds[COMMUNICATION] += waited_s
            seconds[stretch.phase] = seconds.get(stretch.phase, 0.0) + length
        if self.on_cuda and self.forward_is_alone:
            return StepTimes(seconds, seconds.get("forward"))
        return StepTimes(seconds, busy_s if self.watches else None)

    @contextmanager
    def _waiting(self, stream: Any) -> Iterator[None]:
        """Around what may wait. `stream` is the queue that does, where it is not the computation's it counts for nothing."""
        if stream is not None and stream != self._stream:
            yield
            return
        begin = self._mark()
        try:
            yield
        finally:
            self._waits.append((begin, self._mark()))

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3 if self.on_cuda else float(end - begin)


@dataclass(frozen=True)
class _Place:
    """What lets something wait: a function of `owner`."""

    owner: Any
    name: str
    stream: Callable[[Any], Any]
    """By the first argument: the queue that waits; None: the host does."""


def _host_waits() -> list[_Place]:
    """On CPU the host waits, in collectives."""
    return [_Place(owner, name, lambda _: None) for owner, name in _collectives()]


def _device_waits() -> list[_Place]:
    """Collectives let the queue at hand wait; DeepSpeed lets its queues wait for each other, and the host for them."""
    by_host = [(torch.cuda.Stream, "synchronize"), (torch.cuda.Event, "synchronize"), (torch.cuda, "synchronize")]
    return [
        *(_Place(owner, name, lambda _: torch.cuda.current_stream()) for owner, name in _collectives()),
        _Place(torch.cuda.Stream, "wait_event", lambda stream: stream),
        *(_Place(owner, name, lambda _: None) for owner, name in by_host),  # meanwhile nothing is queued
    ]


def _collectives() -> list[tuple[Any, str]]:
    return [*((dist.ProcessGroup, name) for name in COLLECTIVES), (dist.Work, "wait")]


@contextmanager
def _watched(places: list[_Place], waiting: Callable[[Any], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, every call of a place is made within `waiting`."""
    before = [getattr(place.owner, place.name) for place in places]
    for place, method in zip(places, before, strict=True):
        setattr(place.owner, place.name, _within(method, waiting, place.stream))
    try:
        yield
    finally:
        for place, method in zip(places, before, strict=True):
            setattr(place.owner, place.name, method)


def _within(
    method: Callable[..., Any], waiting: Callable[[Any], AbstractContextManager[None]], stream: Callable[[Any], Any]
) -> Callable[..., Any]:
    def watched(*arguments: Any, **named: Any) -> Any:
        with waiting(stream(arguments[0] if arguments else None)):
            return method(*arguments, **named)

    return watched
