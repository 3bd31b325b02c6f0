"""Files that exist whole or not at all, and their checksums.

Everything the project writes goes to a temporary name first, is forced to the disk, and is renamed when complete.
A reader therefore never sees half a file, and a job that was killed leaves at most a temporary file behind.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ttt_dist.util.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def temporary_name(path: Path) -> Path:
    """The name under which `path` is written before it is complete: hidden, beside it, the same for all of this process.

    Nobody can know it before: in a folder that others write to, a link might lie there. Open it by `open_new`.
    """
    return _hidden(path, _TOKEN)


_TOKEN = secrets.token_hex(4)


def _hidden(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{token}.tmp")


def open_new(path: str | Path, mode: str = "wb") -> IO[Any]:
    """Open a file that did not exist, in mode "w", "wb" or "w+b"; a link or a file that lies there goes unread."""
    Path(path).unlink(missing_ok=True)
    return open(path, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8")


def remove_leftovers(*paths: Path) -> None:
    """Remove what killed processes left of these files; call it only where no other process is writing them."""
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            remove(left)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link and not what it points to; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_dead_leftovers(path: Path) -> None:
    """Remove what killed processes of this machine left of `path`, while others may be writing theirs."""
    start = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        process = left.name[len(start) :].split(".")[0]  # older builds put nothing after it
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            left.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file in mode "w" or "wb"; on success it becomes `path`, on any error it is removed.

    Raises UserError naming `path` where the disk is full or the folder cannot be written.
    """
    assert mode in ("w", "wb")
    path = Path(path)
    temporary = _hidden(path, secrets.token_hex(4))
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_new(temporary, mode) as file:
                yield file
            commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn the operating system's refusals while `path` is being written into a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(
                f"{path}: no space left on the disk while writing it; free some, or write elsewhere"
            ) from error
        if error.errno in NO_ACCESS and _concerns(error, Path(path)):
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about `path` or a folder above it, and not about a file read meanwhile."""
    if error.filename is None:
        return True
    other = Path(error.filename)
    is_temporary = other.parent == path.parent and other.match(f".{glob.escape(path.name)}.*.tmp")
    return other == path or is_temporary or other in path.parents


def commit(temporary: Path, path: Path) -> None:
    """Force a finished temporary file to the disk and give it its name."""
    fsync_file(temporary)
    os.replace(temporary, path)
    fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    """Force what has been written to a file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk: a rename is not durable before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path") from error


def sha256_folder(folder: str | Path) -> str:
    """One SHA-256 over the relative names and contents of all files of a folder, in hex."""
    folder = Path(folder)
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def copy_folder(source: str | Path, target: str | Path) -> None:
    """Copy a folder so that `target` exists whole or not at all; an equal `target` is left alone.

    Raises UserError where `target` exists with other contents. Another process may copy the same folder meanwhile.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve() or _is_copy(target, source):
        return
    temporary = temporary_name(target)
    try:
        with writing(target):
            temporary.mkdir(parents=True)
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                copy = temporary / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
                fsync_file(copy)
            if not _is_copy(target, source):
                os.replace(temporary, target)
            fsync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_copy(target: Path, source: Path) -> bool:
    if not target.exists():
        return False
    if sha256_folder(source) != sha256_folder(target):
        raise UserError(f"{target}: exists already and differs from {source}; remove it or choose another place")
    return True
