"""The files that DeepSpeed's state goes into: written by torch.save as zip archives, read without running anything in them.

What is read is plain values, tensors, and the three classes that DeepSpeed itself puts there in our layouts.
"""

import hashlib
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch

from ttt_dist.checkpoint.manifest import FileChecksum
from ttt_dist.util.atomic_files import writing
from ttt_dist.util.errors import UserError


def write_state(state: dict[str, Any], path: str | Path) -> FileChecksum:
    """Write `state` in torch's zip form, in which tensors can be mapped, and force it to the disk; size and checksum.

    Raises UserError where the disk is full.
    """
    with writing(path), open(path, "wb") as file, ThreadPoolExecutor(1) as thread:
        summed = _SummedFile(file, thread)
        torch.serialization.set_crc32_options(False)  # a weaker checksum, made one thing after the other
        try:
            torch.save(state, summed)  # type: ignore[arg-type]  # it has what is asked of it, write and flush
        except RuntimeError as error:  # torch closes its archive after a failed write, and that failure hides the first
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        finally:
            torch.serialization.set_crc32_options(True)
        file.flush()
        os.fsync(file.fileno())
    return FileChecksum(summed.num_bytes, summed.sha256.hexdigest())


class _SummedFile:
    """A file being written whose checksum is made meanwhile, in a thread: reading it again would take as long as writing."""

    def __init__(self, file: IO[bytes], thread: Executor) -> None:
        self.file, self.thread, self.sha256, self.num_bytes = file, thread, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        summed = self.thread.submit(self.sha256.update, data)
        self.num_bytes += memoryview(data).nbytes
        try:
            return self.file.write(data)
        finally:
            summed.result()  # `data` is the caller's again after this

    def flush(self) -> None:
        self.file.flush()


def read_state(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """The state of a file, on the CPU; with `mmap` its tensors stay in the file until they are used.

    Raises UserError naming a file that is missing, broken or none of ours.
    """
    from ttt_dist.parallel.deepspeed_adapter import pickled_classes  # takes seconds: not before a file is read

    try:
        with torch.serialization.safe_globals(pickled_classes()):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; name another checkpoint") from None
    except Exception as error:  # torch follows the file's own instructions, and anything may come of changed ones
        raise UserError(f"{path}: not a whole file of a checkpoint ({_reason(error)}); name another one") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__} and no state of a checkpoint; name another one")
    return state


def _reason(error: Exception) -> str:
    """The line of a long message that says what was wrong; of a refused class, which one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "GLOBAL" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {said.split('. ')[0][:200]}"
