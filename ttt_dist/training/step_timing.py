"""Where the time of a step goes: every moment of it belongs to one phase, and the phases add up to the step.

On CPU a collective keeps its process waiting, so what is spent in collectives is known. It is taken out of the phases and
is one of its own, `communication`; the rest is this process's own work.

On CUDA the host only queues the work. Phases are cut by events in the queue, which cost nothing and are read when the
step's loss has been waited for anyway. Collectives run beside the computation, in queues of their own and of DeepSpeed's, so
no time is said to be theirs, and torch is left as it is: the phases contain what was waited for. Own work is known there only
where the layout has no collective in the forward pass.
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
    """Seconds of own work that compare between processes: all but collectives on CPU, the forward pass on CUDA; None: unknown."""


@dataclass
class _Stretch:
    """From one mark to the next."""

    phase: str
    begin: Any
    end: Any
    waited_s: float
    """Of the host, in collectives."""


class StepClock:
    """Use it as a context around a step, and `charge` a phase at its end.

    `forward_is_alone`: the layout has no collective in the forward pass.
    """

    def __init__(self, device: torch.device, forward_is_alone: bool) -> None:
        self.on_cuda, self.forward_is_alone = device.type == "cuda", forward_is_alone
        self._stretches: list[_Stretch] = []
        self._waited_s = 0.0

    def __enter__(self) -> "StepClock":
        self._watching: AbstractContextManager[None] = nullcontext()
        if not self.on_cuda:
            self._watching = _watched_collectives(self._hear)
        self._watching.__enter__()
        self._last = self._mark()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watching.__exit__(*exception)

    def charge(self, phase: str) -> None:
        """Everything since the last charge, or the start, was `phase`."""
        mark = self._mark()
        self._stretches.append(_Stretch(phase, self._last, mark, self._waited_s))
        self._last, self._waited_s = mark, 0.0

    def times(self) -> StepTimes:
        """The sums. On CUDA it waits for the last charge: call it after something that waits for the device anyway."""
        if self.on_cuda:
            self._last.synchronize()
        seconds: dict[str, float] = {} if self.on_cuda else {COMMUNICATION: 0.0}
        for stretch in self._stretches:
            length = self._between(stretch.begin, stretch.end)
            if not self.on_cuda:
                length -= stretch.waited_s
                seconds[COMMUNICATION] += stretch.waited_s
            seconds[stretch.phase] = seconds.get(stretch.phase, 0.0) + length
        return StepTimes(seconds, self._own(seconds))

    def _own(self, seconds: dict[str, float]) -> float | None:
        if not self.on_cuda:
            return sum(seconds.values()) - seconds[COMMUNICATION]
        return seconds.get("forward") if self.forward_is_alone else None

    def _hear(self, seconds: float) -> None:
        self._waited_s += seconds

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3 if self.on_cuda else float(end - begin)


@contextmanager
def _watched_collectives(hear: Callable[[float], None]) -> Iterator[None]:
    """Tell `hear` how many seconds each beginning of a collective and each wait for one keeps the caller."""
    places = [(dist.ProcessGroup, name) for name in COLLECTIVES] + [(dist.Work, "wait")]
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, method in before:
        setattr(owner, name, _timed(method, hear))
    try:
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def _timed(method: Callable[..., Any], hear: Callable[[float], None]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            hear(time.perf_counter() - begin)

    return timed
