"""Frequent saves to the disks of the nodes: what a run that is cut off goes on from where they are newer than its checkpoints.

    LOCAL_DIR/NAME-HASH/START/step-00000120/     NAME and HASH of the run folder, START of this start of the run
        *_states.pt        files of the processes whose disk this is, and copies of those of the next disk's processes
        part-00003.json    what process 3 has written: its files with checksums, and the run's facts; written last

A set is complete where, over all disks that are still there, each process's part is. At the next start the newest complete
one that is newer than RUN/checkpoints is put together there, as a checkpoint like any other; so whatever reads checkpoints
knows nothing of these. Only what the start before has saved counts (RUN/checkpoints/.local-start names it): sets that lie
about on nodes from before that are of another past.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.async_save import AsyncSaver, Files, Saved
from ttt_dist.checkpoint.manager import CheckpointMetadata, gather
from ttt_dist.checkpoint.manifest import FileChecksum, require_checksums
from ttt_dist.config.run import Config
from ttt_dist.launch.rendezvous import ranges
from ttt_dist.util.atomic_files import atomic_write, fsync_file, writing
from ttt_dist.util.console import print_rank0, warn
from ttt_dist.util.errors import UserError

START = ".local-start"
PART = "part-{:05d}.json"
CHUNK = 64 << 20


class LocalSaves:
    """The sets of this start of a run; its making is collective, and from then on those of earlier starts count no more."""

    def __init__(self, config: Config) -> None:
        """Raises UserError, on all processes alike, where one cannot write to its disk."""
        start = gather(secrets.token_hex(4))[0]
        self.folder = _folder_of(config) / start
        self.complete: int | None = None
        """Step of the newest set that is complete, which is kept until the next one is."""
        disks = _disks(self.folder)
        self.partners = _partners(disks)
        self._group = dist.new_group(backend="gloo") if self.partners else None
        manager.on_first_rank(lambda: begin_start(config, start))
        if dist.get_rank() == min(disks[dist.get_rank()]):
            for other in set(self.folder.parent.iterdir()) - {self.folder}:
                shutil.rmtree(other, ignore_errors=True)

    def save(self, saver: AsyncSaver, step: int, run: CheckpointMetadata, counters: dict[str, Any]) -> None:
        """Begin to write a set; none may be in flight."""
        for path in self.folder.glob("step-*"):
            # Older ones, and those of saves that have failed on another host; this step's may be under way.
            if manager.number(path) not in (self.complete, step):
                shutil.rmtree(path, ignore_errors=True)
        place = self.folder / f"step-{step:08d}"
        target = _LocalTarget(self, place, manager.metadata_of(step, run, counters))
        saver.start(Saved(step, place, is_local=True), target)


class _LocalTarget:
    """A set being written, see `async_save.Target`."""

    def __init__(self, saves: LocalSaves, folder: Path, metadata: dict[str, Any]) -> None:
        self.saves, self.folder, self.metadata = saves, folder, metadata

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def part_written(self, files: Files | None) -> None:
        try:
            if files is not None:
                self._seal(dist.get_rank(), files)
        finally:  # in any case: the other host's process waits for it
            if self.saves.partners is not None:
                to, source = self.saves.partners
                theirs = _swap(self.folder, files, to, source, self.saves._group)
                if theirs is not None:
                    self._seal(source, theirs)

    def all_written(self, files: Files) -> None: ...

    def _seal(self, rank: int, files: Files) -> None:
        values = {name: file._asdict() for name, file in files.items()}
        with atomic_write(self.folder / PART.format(rank)) as file:
            json.dump({"files": values, "metadata": self.metadata}, file)


# Which processes share a disk, and to which other one each sends a copy


def _disks(folder: Path) -> list[list[int]]:
    """Of each rank, the ranks that see the same `folder`, which is made; collective."""
    mark = f".rank-{dist.get_rank()}"
    failure = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
    except OSError as error:
        failure = UserError(
            f"{folder} on {socket.gethostname()}: cannot be written ({error.strerror}); mend checkpoint.local_dir"
        )
    failures = gather(failure)
    if first := next((one for one in failures if one is not None), None):
        raise first
    seen = gather(sorted(int(path.name.rpartition("-")[2]) for path in folder.glob(".rank-*")))
    (folder / mark).unlink()
    return seen


def _partners(disks: list[list[int]]) -> tuple[int, int] | None:
    """The rank on the next disk that this one sends its files to, and the one that it is sent some by; None: there is none."""
    groups = sorted({tuple(disk) for disk in disks})
    if len(groups) == 1:
        return None
    if len({len(group) for group in groups}) > 1:
        warn(
            "checkpoint.local_dir: hosts have unequal numbers of processes, so local saves are not copied to another host"
        )
        return None
    own = groups.index(tuple(disks[dist.get_rank()]))
    place = groups[own].index(dist.get_rank())
    return groups[(own + 1) % len(groups)][place], groups[own - 1][place]


def _swap(folder: Path, files: Files | None, to: int, source: int, group: Any) -> Files | None:
    """Send this process's files to rank `to` and write down those of `source`, if it has any, while it does the same.

    A disk that fails is told of at the end: what others wait for is sent and taken first.
    """

    def swap(sent: Tensor | None, size: int | None) -> Tensor | None:
        received = None if size is None else torch.empty(size, dtype=torch.uint8)
        works = [dist.isend(sent, to, group)] if sent is not None else []
        works += [dist.irecv(received, source, group)] if received is not None else []
        for work in works:
            work.wait()  # type: ignore[union-attr]
        return received

    def swap_json(value: Any) -> Any:
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = swap(torch.tensor([said.numel()]).view(torch.uint8), 8)
        received = swap(said, int(size.view(torch.int64)))  # type: ignore[union-attr]
        return json.loads(bytes(received.numpy()))  # type: ignore[union-attr]

    theirs = swap_json(files)
    theirs = None if theirs is None else {name: FileChecksum(*values) for name, values in theirs.items()}
    failures: list[OSError] = []
    with _kept(failures):
        for name in theirs or {}:
            (folder / name).unlink(missing_ok=True)
    for sent, place in zip_longest(_chunks(folder, files or {}, failures), _places(theirs or {})):
        received = swap(sent, None if place is None else place[2])
        if received is not None and not failures:
            with _kept(failures), (folder / place[0]).open("ab") as file:
                file.write(received.numpy().tobytes())
    if failures and files is not None:
        raise failures[0]
    if failures:  # of a disk that did not take this process's own part either, and why is about to be told
        return None
    for name in theirs or {}:
        fsync_file(folder / name)
    return theirs


def _chunks(folder: Path, files: Files, failures: list[OSError]) -> Iterator[Tensor]:
    """The files' bytes in the order of `_places`; zeros, which no checksum will take for them, where they cannot be read."""
    for name, first, size in _places(files):
        data = bytearray(size)
        with _kept(failures), (folder / name).open("rb") as file:
            file.seek(first)
            file.readinto(data)
        yield torch.frombuffer(data, dtype=torch.uint8)


def _places(files: Files) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and number of bytes of the pieces in which files are sent."""
    for name, file in files.items():
        for first in range(0, file.bytes, CHUNK):
            yield name, first, min(CHUNK, file.bytes - first)


@contextlib.contextmanager
def _kept(failures: list[OSError]) -> Iterator[None]:
    """What the disk refuses inside is kept for later."""
    try:
        yield
    except OSError as error:
        failures.append(error)


# At the start of a run


def restore_newest_set(config: Config, newest: Path | None) -> Path | None:
    """Put the newest complete set together as a checkpoint of the run, where it is newer than the checkpoint `newest`.

    Collective. Returns the checkpoint, None where there is no such set. The processes may be others, on other hosts.
    """
    checkpoint, folder = config.checkpoint, None
    start = gather(_read_start(config))[0]
    if start and checkpoint.local_dir and checkpoint.resume:
        folder = _restore(config, newest, _folder_of(config) / start)
    if start and not checkpoint.local_every:  # the run goes on without them, and what they hold is soon another past
        manager.on_first_rank(lambda: begin_start(config, ""))
    return folder


def _restore(config: Config, newest: Path | None, folder: Path) -> Path | None:
    is_own = newest is not None and newest.parent == _checkpoints(config)
    # A file system may show others a new folder later than it does rank 0: all go by the same step.
    first = manager.from_first_rank(1 + manager.number(newest) if newest is not None and is_own else 0)
    seen = gather({manager.number(path): sorted(_parts_in(path)) for path in folder.glob("step-*")})
    for step in sorted({step for steps in seen for step in steps if step >= first}, reverse=True):
        holders: dict[int, list[int]] = {}
        for reader, steps in enumerate(seen):
            for part in steps.get(step, []):
                holders.setdefault(part, []).append(reader)
        try:
            return _assemble(config, folder / f"step-{step:08d}", holders)
        except UserError as error:
            warn(f"skipping a local save: {error}")
    return None


def _assemble(config: Config, local: Path, holders: dict[int, list[int]]) -> Path:
    """A checkpoint of the parts of a set, each of which is read by one of its holders, by another one where that fails."""
    parts = _parts_in(local)
    facts = next((part["metadata"] for part in gather(next(iter(parts.values()), None)) if part is not None), None)
    if facts is None:
        raise UserError(f"{local}: no part of it is whole")
    lost = sorted(set(range(facts["world_size"])) - holders.keys())
    if lost:
        raise UserError(f"{local}: the part of rank(s) {ranges(lost)} is on no disk that is left")
    final, aside = manager.begin(_checkpoints(config), facts["step"])
    files: Files = {}
    todo = sorted(holders)
    for attempt in range(max(map(len, holders.values()))):
        own = [part for part in todo if holders[part][(part + attempt) % len(holders[part])] == dist.get_rank()]
        for copied in gather({part: _copied(local, aside, parts[part]) for part in own}):
            for part, part_files in copied.items():
                if part_files is not None:
                    todo.remove(part)
                    files |= part_files
    if todo:
        manager.on_first_rank(lambda: shutil.rmtree(aside))
        raise UserError(f"{local}: the part of rank(s) {ranges(todo)} is damaged")
    manager.on_first_rank(lambda: manager.publish(aside, final, facts, files, config.checkpoint))
    print_rank0(f"{final}: put together from local saves in {local}")
    return final


def _copied(local: Path, target: Path, part: dict[str, Any]) -> Files | None:
    """A part's files, once they are in `target` with the contents that were written; None where they are not."""
    files = {name: FileChecksum(**values) for name, values in part["files"].items()}
    try:
        for name in files:
            with writing(target / name):
                shutil.copyfile(local / name, target / name)
                fsync_file(target / name)
        require_checksums(target, files, files)
    except (OSError, UserError) as error:
        warn(f"{local}: {error}")
        return None
    return files


def _parts_in(folder: Path) -> dict[int, dict[str, Any]]:
    """By rank, what part-*.json says of the parts whose files are there in full."""
    parts = {}
    for path in folder.glob("part-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            part = json.loads(path.read_text(encoding="utf8"))
            if all((folder / name).stat().st_size == file["bytes"] for name, file in part["files"].items()):
                parts[int(path.stem.rpartition("-")[2])] = part
    return parts


def begin_start(config: Config, start: str) -> None:
    """From now on only sets of `start` count; "" for none."""
    with atomic_write(_checkpoints(config) / START) as file:
        file.write(f"{start}\n")


def _checkpoints(config: Config) -> Path:
    return Path(config.run_dir) / "checkpoints"


def _folder_of(config: Config) -> Path:
    """Of this run on this host's disk; variables are those of each host."""
    assert config.checkpoint.local_dir is not None
    run = Path(config.run_dir).resolve()
    name = f"{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:8]}"
    return Path(os.path.expandvars(config.checkpoint.local_dir)) / name


def _read_start(config: Config) -> str | None:
    try:
        return (_checkpoints(config) / START).read_text(encoding="utf8").strip() or None
    except OSError:
        return None
