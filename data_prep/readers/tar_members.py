"""What lies in a tar, as places to seek to: nothing is unpacked, and memory holds one header at a time."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ttt_dist.manifest.problems import Problems

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


class TarMember(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int

    def place(self) -> dict[str, int]:
        """The `member` of an entry."""
        return {"offset": self.offset, "size": self.size}


def is_compressed(path: Path) -> bool:
    """Whether the file begins as those do that gzip, bzip2, xz or zstd wrote."""
    with open(path, "rb") as file:
        return file.read(6).startswith(COMPRESSED)


def tar_members(path: Path, problems: Problems) -> Iterator[TarMember]:
    """The files of a tar in its order; one that is damaged or compressed is reported, with what comes before it kept."""
    try:
        size = path.stat().st_size
        if is_compressed(path):
            message = f"{path}: is compressed, its members cannot be read by seeking; unpack it to a .tar or a folder"
            problems.report(message, "compressed")
            return
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within member {member.name}")
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        problems.report(f"{path}: is damaged or no tar ({error}); fetch it again", "bad tar")
