"""What a save is to write, copied to host memory while training goes on.

Between two updates nothing changes weights and moments: forward and backward passes only read them. So a save only notes
which tensors belong to it (`Snapshot.of`), a thread copies them beside the next step's passes, and the update waits for the
copies that are not done by then (CheckFreq, FAST 2021, section 4.1). Buffers are kept for the next save, page-locked where
the tensors lie on a GPU: memory that is touched for the first time is several times slower to write.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class HostBuffers:
    """Memory of the copies, the same for every save: their sizes do not change during a run."""

    buffers: list[Tensor] = field(default_factory=list)
    used: int = 0

    def like(self, tensor: Tensor) -> Tensor:
        """Host memory for a copy of `tensor`; what is in it is of an earlier save."""
        number, self.used = self.used, self.used + 1
        if number < len(self.buffers) and self.buffers[number].nbytes == tensor.nbytes:
            return self.buffers[number].view(tensor.dtype).view(tensor.shape)
        buffer = torch.empty(tensor.nbytes, dtype=torch.uint8)
        if tensor.is_cuda and tensor.nbytes:
            # Not pin_memory(): its allocator rounds up to powers of two, of a memory that is to hold the whole state.
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
        self.buffers[number:] = [buffer]
        return buffer.view(tensor.dtype).view(tensor.shape)


class Snapshot:
    """The states of some files as they are now, to be copied before the next update."""

    def __init__(self, buffers: HostBuffers) -> None:
        self.states: dict[str, Any] = {}
        """By the file's path; whole once `copy` has been called."""
        self._buffers = buffers
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._queued: torch.cuda.Event | None = None
        buffers.used = 0

    def add(self, path: str, state: Any) -> None:
        """Note what goes into a file. Plain values are copied at once, as they are few."""
        memo: dict[int, Any] = {}
        for tensor in _tensors(state):
            if id(tensor) not in memo:
                memo[id(tensor)] = target = self._buffers.like(tensor)
                self._pairs.append((tensor.detach(), target))
                if tensor.is_cuda and self._queued is None:
                    self._queued = torch.cuda.Event()
        self.states[path] = copy.deepcopy(state, memo)
        if self._queued is not None:
            self._queued.record()

    def copy(self) -> None:
        """Copy the tensors, in any thread; returns when they are copied. Once."""
        if self._queued is None:
            for source, target in self._pairs:
                target.copy_(source)
        else:
            device = next(source.device for source, _ in self._pairs if source.is_cuda)
            stream = torch.cuda.Stream(device)
            stream.wait_event(self._queued)
            with torch.cuda.stream(stream):
                for source, target in self._pairs:
                    target.copy_(source, non_blocking=True)
            stream.synchronize()
        self._pairs.clear()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
