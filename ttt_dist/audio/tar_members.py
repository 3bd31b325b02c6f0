"""The members of a tar archive, up to the end that it has to have: Python's tarfile takes a damaged header for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ttt_dist.audio.sources import require_regular

DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError)
"""What tarfile raises at a damaged archive."""
BLOCK = tarfile.BLOCKSIZE
STRETCH = 2**20  # bytes looked at together


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """(archive, member) of all members in order, those of archives appended to it too; none is kept in memory.

    Raises one of DAMAGE where the archive is damaged, or ends otherwise than in zeros.
    """
    require_regular(path, str(path))
    size = path.stat().st_size
    with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
        while True:
            if (member := tar.next()) is None:
                place = _after_end(file, tar.offset, size)  # where tarfile gave up
                if place is None:
                    return
                tar.offset = place
                tar.fileobj.seek(place)
                continue
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            if member.size < 0 or member.offset_data + member.size > size:
                raise tarfile.ReadError(f"it ends within member {member.name}")
            yield tar, member


def _after_end(file: BinaryIO, end: int, size: int) -> int | None:
    """The header of an archive behind the end of one; None where only zeros come. Raises ReadError where `end` is none."""
    file.seek(end)
    first = file.read(BLOCK)
    if len(first) < BLOCK:  # zeros too: an archive is made of whole blocks
        raise tarfile.ReadError(f"it has no end: something is missing from byte {size:,} on")
    if first.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {end:,} is no header")
    place = end + len(first)
    while stretch := file.read(STRETCH):
        if rest := stretch.lstrip(b"\0"):
            return (place + len(stretch) - len(rest)) // BLOCK * BLOCK
        place += len(stretch)
    return None
