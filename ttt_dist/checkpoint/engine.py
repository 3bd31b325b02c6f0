"""How DeepSpeed's files get to the disk: whole, with their checksums, and with a full disk as one clear line."""

import os
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

from ttt_dist.checkpoint.manifest import FileChecksum
from ttt_dist.checkpoint.snapshot import HostBuffers, Snapshot
from ttt_dist.checkpoint.torch_io import read_state, write_state
from ttt_dist.util.atomic_files import writing
from ttt_dist.util.errors import UserError


class ChecksummingEngine(CheckpointEngine):
    """DeepSpeed's checkpoint engine of this process.

    A failure is kept for after the save: raised in the midst, it would leave the other processes waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, FileChecksum] = {}
        """Files of the newest save, by their names in its folder."""
        self.failure: UserError | None = None
        """Why the newest save is not complete."""

    def create(self, info: CheckpointCommitInfo) -> None:
        self.files, self.failure = {}, None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        os.makedirs(path, exist_ok=True)

    def save(self, state_dict: Any, path: str) -> None:
        if self.failure is not None:
            return
        try:
            with writing(path):
                self.files[Path(path).name] = write_state(state_dict, Path(path))
        except (UserError, OSError) as error:
            self.failure = error if isinstance(error, UserError) else UserError(f"{path}: {error.strerror}")

    def load(self, path: str, map_location: Any = None) -> Any:
        return read_state(Path(path))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return self.failure is None


class SnapshotEngine(CheckpointEngine):
    """DeepSpeed's checkpoint engine that writes nothing: what a save would write is in `snapshot`."""

    def __init__(self, buffers: HostBuffers) -> None:
        super().__init__()
        self.snapshot = Snapshot(buffers)

    def create(self, info: CheckpointCommitInfo) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def preserves_storage_sharing(self) -> bool:
        """False: DeepSpeed need not clone views of larger tensors first, as the copies are their own."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        self.snapshot.add(path, state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True
