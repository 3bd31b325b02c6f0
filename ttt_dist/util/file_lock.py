"""Leases: who may write an output, among jobs on any number of machines that share a file system.

A lease is a lock of the operating system on a hidden file beside the output. It ends with the process that holds it,
however that ends: nothing has to expire, and a job that was killed is followed by its successor at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ttt_dist.util.atomic_files import writing
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
NOT_A_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # of opening a link, a folder, a socket


@contextmanager
def lease(path: Path, wait: bool = False) -> Iterator[bool]:
    """Try to get the lease on `path`, or wait for it; yields whether it is ours. The folder of `path` is made.

    Where the file system has no locks everyone gets it, with a warning: outputs are whole even then, as each process
    writes under names of its own, but work may be done twice.
    """
    lock = lock_name(path)
    with writing(path), writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            lock.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def require_lease(path: Path) -> Iterator[None]:
    """The lease on `path`. Raises UserError naming its holder where another job has it."""
    with lease(path) as ours:
        if not ours:
            raise UserError(f"{path}: is being written by {holder(path)}; wait for it, or choose another --out")
        yield


def lock_name(path: Path) -> Path:
    """The file whose lock is the lease on `path`."""
    return path.with_name(f".{path.name}.lock")


def holder(path: Path) -> str:
    """Who has the lease on `path`, as far as can be told."""
    try:
        descriptor = os.open(lock_name(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "another job"
    try:
        told = os.read(descriptor, 200).decode("utf-8", "replace") if _is_own_file(descriptor) else ""
        return "".join(sign if sign.isprintable() else " " for sign in told) or "another job"
    finally:
        os.close(descriptor)


def _acquire(lock: Path, wait: bool) -> int | None:
    while True:
        descriptor = _open(lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            warn(f"{lock.parent}: this file system has no locks; jobs that run at once may do the same work twice")
        if _is_current(lock, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # its holder removed the file while we waited: the lock is on a new one


def _open(lock: Path) -> int:
    """The lock's file, made where there is none. Raises UserError where something else lies there: it is written to."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise
    else:
        if _is_own_file(descriptor):
            return descriptor
        os.close(descriptor)
    raise UserError(
        f"{lock}: is a link or no file, and not the lock that belongs there; find out who made it and remove it"
    )


def _is_own_file(descriptor: int) -> bool:
    """Whether a file has no other name, so that nothing but a lock is overwritten; it may just have lost its only one."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def _is_current(lock: Path, descriptor: int) -> bool:
    try:
        return os.lstat(lock).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
