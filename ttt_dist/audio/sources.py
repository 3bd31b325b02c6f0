"""Where the bytes of a recording come from: a file of this machine, or memory."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from ttt_dist.util.errors import UserError

Source = str | Path | bytes
"""An audio file: its path, or its bytes where it is a member of a container."""

Bytes: TypeAlias = bytes | mmap.mmap
"""What is sliced like bytes: those of a file are read from the disk where they are looked at."""


def require_regular(path: str | Path, name: str) -> None:
    """Refuse what is no file: a pipe would wait for ever, a device has no end. Raises UserError, OSError where it is absent."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a zero byte, or half a character
        raise UserError(f"{name}: no file can have this name ({error}); correct the path") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(mode), "device")
        raise UserError(f"{name}: cannot be read (it is a {kind}, not a file); correct the path")


def head_of(source: Source, size: int) -> bytes:
    """The first bytes of a recording."""
    if isinstance(source, bytes):
        return source[:size]
    with open(source, "rb", buffering=0) as file:
        return file.read(size)


@contextmanager
def mapped(source: Source) -> Iterator[Bytes]:
    """All bytes of a recording that is not empty."""
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


@contextmanager
def as_file(source: Source) -> Iterator[str | int]:
    """The path, or a descriptor: of a file in memory, as libsndfile reads MP3 there, and not always through callbacks; and of
    one beside which macOS has left another for it, which libsndfile takes for the recording where that is an MP3."""
    if not isinstance(source, bytes):
        folder, name = os.path.split(source)
        forks = (f"._{name}", f".AppleDouble/{name}")
        if any(os.path.exists(os.path.join(folder, fork)) for fork in forks):
            with open(source, "rb") as file:
                yield file.fileno()
        else:
            yield str(source)
        return
    with open(os.memfd_create("audio"), "r+b") as file:
        file.write(source)
        file.seek(0)
        yield file.fileno()
