"""Saving while training goes on: a snapshot of the state (snapshot.py), written and published by a thread of each process.

Threads tell each other through the store of the rendezvous, and that of rank 0 gives the checkpoint its name: from the
snapshot on, no process's training takes part. A checkpoint is complete or invisible as ever, and a process that is killed
takes its thread along. Copying, hashing, writing and forcing to the disk all leave the interpreter to the training.
"""

import contextlib
import json
import secrets
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.engine import SnapshotEngine
from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.checkpoint.manifest import FileChecksum
from ttt_dist.checkpoint.snapshot import HostBuffers, Snapshot
from ttt_dist.checkpoint.torch_io import write_state
from ttt_dist.config.run import CheckpointConfig
from ttt_dist.launch.rendezvous import PATIENT_TIMEOUT, ranges, run_store
from ttt_dist.parallel.deepspeed_adapter import before_adam, write_through
from ttt_dist.util.errors import UserError, first_line

if TYPE_CHECKING:
    import deepspeed

POLL_S = 0.05
LAST_WORD_S = 10.0  # after an error, the others have as long as rank 0 needed for its part, and so much more
RUNNING, ENDED = range(2)

Files = dict[str, FileChecksum]


class Saved(NamedTuple):
    """A save that has come to its end, the same on all processes."""

    step: int
    folder: Path
    seconds: float = 0.0
    """From the snapshot to the checkpoint's name."""
    failure: str | None = None
    is_local: bool = False


class Target(Protocol):
    """Where a save goes; its methods are called in the threads that write, and what they raise fails the save."""

    folder: Path
    """Which each process writes its files into, on a disk that it shares with all others or not."""

    def prepare(self) -> None:
        """On each process, before its files are written."""

    def part_written(self, files: Files | None) -> None:
        """On each process, once its files are there; None: they are not. Called in any case."""

    def all_written(self, files: Files) -> None:
        """On rank 0, once all processes have called `part_written`."""


class SharedTarget:
    """A checkpoint of the run folder."""

    def __init__(self, folder: Path, final: Path, metadata: dict[str, Any], keep: CheckpointConfig) -> None:
        self.folder, self.final, self.metadata, self.keep = folder, final, metadata, keep

    def prepare(self) -> None: ...

    def part_written(self, files: Files | None) -> None: ...

    def all_written(self, files: Files) -> None:
        manager.publish(self.folder, self.final, self.metadata, files, self.keep)


class AsyncSaver:
    """Saves of an engine, one at a time. All methods but `close` are collective, and so is its making."""

    def __init__(self, engine: "deepspeed.DeepSpeedEngine") -> None:
        self.engine = engine
        self.waited_s = 0.0
        """How long updates have waited for copies, in all."""
        self._buffers = HostBuffers()
        self._copied, self._given_up = threading.Event(), threading.Event()
        self._copied.set()
        # torchrun keeps the store over restarts: what a process of before has said must not count.
        prefix = manager.gather(secrets.token_hex(4))[0]
        self._store = dist.PrefixStore(f"save/{prefix}", run_store(PATIENT_TIMEOUT) or dist.HashStore())
        self._thread: threading.Thread | None = None
        self._result: Saved
        before_adam(engine, lambda: self._wait_for_copies())

    @property
    def in_flight(self) -> bool:
        """Whether there is a save whose end has not been told yet."""
        return self._thread is not None

    def save(
        self, folder: Path, step: int, run: CheckpointMetadata, counters: dict[str, Any], keep: CheckpointConfig
    ) -> Saved | None:
        """Begin to write the state after `step` updates, as `manager.save` does; none may be in flight.

        Where it cannot even be begun, it has ended at once.
        """
        try:
            final, aside = manager.begin(folder, step)
        except (OSError, UserError) as error:
            return Saved(step, folder, failure=str(error))
        self.start(Saved(step, final), SharedTarget(aside, final, manager.metadata_of(step, run, counters), keep))
        return None

    def start(self, saved: Saved, target: Target) -> None:
        """Begin a save that, if nothing goes wrong, is to end as `saved`."""
        assert self._thread is None
        storage, aside = SnapshotEngine(self._buffers), target.folder
        write_through(self.engine, storage)
        self.engine.save_checkpoint(
            str(aside.parent), tag=aside.name, client_state={"step": saved.step}, save_latest=False
        )
        self._copied.clear()
        self._result = saved
        self._thread = threading.Thread(target=self._write, args=(storage.snapshot, target), name="save", daemon=True)
        self._thread.start()

    def poll(self) -> Saved | None:
        """The save in flight if it has come to its end; told once."""
        return self._ended(wait=False)

    def wait(self) -> Saved | None:
        """The same, and its end is waited for; None where none is in flight."""
        return self._ended(wait=True)

    def close(self) -> Saved | None:
        """Finish what is in flight at the end of the run, also an error's, as far as the other processes still write theirs.

        Rank 0 is told how it ended.
        """
        if self._thread is None:
            return None
        self._given_up.set()
        self._thread.join()
        self._thread = None
        return self._result if dist.get_rank() == 0 else None

    def _ended(self, wait: bool) -> Saved | None:
        """Whether a save has ended is for rank 0 to say."""
        if self._thread is None:
            return None
        state = torch.full((), RUNNING, device=self.engine.device)
        if dist.get_rank() == 0:
            if wait:
                self._thread.join()
            state.fill_(RUNNING if self._thread.is_alive() else ENDED)
        dist.all_reduce(state, dist.ReduceOp.MAX)
        if int(state) == RUNNING:
            return None
        self._thread.join()
        self._thread = None
        return manager.gather(self._result)[0]

    def _wait_for_copies(self) -> None:
        if not self._copied.is_set():
            begin = time.perf_counter()
            self._copied.wait()
            self.waited_s += time.perf_counter() - begin

    # In the thread

    def _write(self, snapshot: Snapshot, target: Target) -> None:
        begin, key = time.monotonic(), target.folder.name
        files, failure = self._write_part(snapshot, target)
        with contextlib.suppress(RuntimeError):  # rank 0 has gone, and nothing will come of this save
            self._store.set(f"{key}/{dist.get_rank()}", json.dumps([files, failure]))
        if dist.get_rank() == 0:
            failure = self._complete(target, time.monotonic() - begin)
            self._result = self._result._replace(seconds=time.monotonic() - begin, failure=failure)

    def _write_part(self, snapshot: Snapshot, target: Target) -> tuple[Files, str | None]:
        written: Files | None = None
        try:
            try:
                self._copy(snapshot)
                target.prepare()
                written = {Path(path).name: write_state(state, path) for path, state in snapshot.states.items()}
            finally:
                target.part_written(written)
        except Exception as error:  # of whatever kind: the others wait for a word
            return {}, f"rank {dist.get_rank()} on {socket.gethostname()}: {_told(error)}"
        return written, None

    def _copy(self, snapshot: Snapshot) -> None:
        try:
            snapshot.copy()
        finally:
            self._copied.set()

    def _complete(self, target: Target, own_s: float) -> str | None:
        """Wait for all parts and make a checkpoint of them; why there is none."""
        files: Files = {}
        try:
            for part, failure in self._parts(target.folder.name, own_s):
                if failure is not None:
                    raise UserError(failure)
                files |= {name: FileChecksum(*values) for name, values in part.items()}
            target.all_written(files)
        except Exception as error:  # training goes on, and is told
            shutil.rmtree(target.folder, ignore_errors=True)
            return _told(error)
        return None

    def _parts(self, key: str, own_s: float) -> list[Any]:
        keys = [f"{key}/{rank}" for rank in range(dist.get_world_size())]
        end = float("inf")
        while not self._store.check(keys):
            if self._given_up.is_set():
                end = min(end, time.monotonic() + own_s + LAST_WORD_S)
            if time.monotonic() > end:
                missing = [rank for rank, name in enumerate(keys) if not self._store.check([name])]
                raise UserError(f"rank(s) {ranges(missing)} have not written their part")
            time.sleep(POLL_S)
        parts = [json.loads(self._store.get(name)) for name in keys]
        for name in keys:
            self._store.delete_key(name)
        return parts


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
