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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.engine import SnapshotEngine
from ttt_dist.checkpoint.manager import CheckpointMetadata
from ttt_dist.checkpoint.manifest import FileChecksum
from ttt_dist.checkpoint.snapshot import HostBuffers, Snapshot
from ttt_dist.checkpoint.torch_io import write_state
from ttt_dist.config.run import CheckpointConfig
from ttt_dist.launch.rendezvous import run_store
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
        self._store = dist.PrefixStore(f"save/{prefix}", run_store() or dist.HashStore())
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
        metadata = manager.metadata_of(step, run, counters)

        def publish(files: Files) -> None:
            manager.publish(aside, final, metadata, files, keep)

        self._start(Saved(step, final), aside, publish)
        return None

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

    def _start(self, target: Saved, aside: Path, publish: Callable[[Files], None]) -> None:
        assert self._thread is None
        storage = SnapshotEngine(self._buffers)
        write_through(self.engine, storage)
        self.engine.save_checkpoint(
            str(aside.parent), tag=aside.name, client_state={"step": target.step}, save_latest=False
        )
        self._copied.clear()
        self._result = target
        self._thread = threading.Thread(
            target=self._write, args=(storage.snapshot, aside, publish), name="save", daemon=True
        )
        self._thread.start()

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

    def _write(self, snapshot: Snapshot, aside: Path, publish: Callable[[Files], None]) -> None:
        begin, key = time.monotonic(), aside.name
        files, failure = self._write_part(snapshot)
        with contextlib.suppress(RuntimeError):  # rank 0 has gone, and nothing will come of this save
            self._store.set(f"{key}/{dist.get_rank()}", json.dumps([files, failure]))
        if dist.get_rank() == 0:
            failure = self._complete(aside, publish, time.monotonic() - begin)
            self._result = self._result._replace(seconds=time.monotonic() - begin, failure=failure)

    def _write_part(self, snapshot: Snapshot) -> tuple[Files, str | None]:
        files = {}
        try:
            try:
                snapshot.copy()
            finally:
                self._copied.set()
            for path, state in snapshot.states.items():
                files[Path(path).name] = write_state(state, path)
        except Exception as error:  # of whatever kind: the others wait for a word
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            return {}, f"rank {dist.get_rank()} on {socket.gethostname()}: {told}"
        return files, None

    def _complete(self, aside: Path, publish: Callable[[Files], None], own_s: float) -> str | None:
        """Wait for all parts and make a checkpoint of them; why there is none."""
        files: Files = {}
        try:
            for part, failure in self._parts(aside.name, own_s):
                if failure is not None:
                    raise UserError(failure)
                files |= {name: FileChecksum(*values) for name, values in part.items()}
            publish(files)
        except Exception as error:  # training goes on, and is told
            shutil.rmtree(aside, ignore_errors=True)
            return (
                str(error) if isinstance(error, UserError) else f"{aside}: {type(error).__name__}: {first_line(error)}"
            )
        return None

    def _parts(self, key: str, own_s: float) -> list[Any]:
        keys = [f"{key}/{rank}" for rank in range(dist.get_world_size())]
        end = float("inf")
        while not self._store.check(keys):
            if self._given_up.is_set():
                end = min(end, time.monotonic() + own_s + LAST_WORD_S)
            if time.monotonic() > end:
                missing = [rank for rank, name in enumerate(keys) if not self._store.check([name])]
                raise UserError(f"rank(s) {missing} have not written their part")
            time.sleep(POLL_S)
        parts = [json.loads(self._store.get(name)) for name in keys]
        for name in keys:
            self._store.delete_key(name)
        return parts
