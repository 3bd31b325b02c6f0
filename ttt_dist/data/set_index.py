"""What a reader needs of every shard of a set, in one mapped file: PREFIX.shards beside PREFIX.json.

Without it a process would read one JSON per shard before its first batch. `data_prep pack` writes it; for a set of an earlier
version whoever opens it first does. It is a copy of what the JSONs say and belongs to the PREFIX.json whose checksum it holds:
under any other it is not looked at.

    magic, SHA-256 of all that follows; checksum of PREFIX.json, sizes    96 bytes
    PREFIX.json without its lists of shards and files, as JSON            padded to 8 bytes
    ends      int64 [n]      packs of all shards up to the end of each
    num_bytes int64 [n, 2]   of the .bin and of the .idx; -1 where the JSON says nothing of it
    idx_sha256 uint8 [n, 32] zeros where the JSON says nothing of it
    names     bytes [n, w]   in UTF-8, padded with zeros
"""

import json
import mmap
import os
import struct
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

SUFFIX = ".shards"
MAGIC = b"TTTSHRD1"
START = len(MAGIC) + 32
HEADER = struct.Struct("<32sQQQ")  # checksum of PREFIX.json, bytes of its JSON, shards, bytes of a name
NUM_THREADS = 16  # that ask a file system for sizes: one that is far away answers many as fast as one
PROBED = 100  # shards that are asked for first, by one thread: they tell whether the file system is near
NEAR_S = 1e-4  # of a shard on a disk; over a network it takes more
MANY = 100  # shards whose JSONs nobody would like each process to read

Check = Literal["sizes", "names", "nothing"]
"""What is asked of a set's files when it is opened: every size, a listing of their folder, or nothing. Whatever it is, a shard
is checked when it is first read."""


@dataclass(frozen=True)
class SetIndex:
    """The shards of a set, or the one shard that a prefix stands for."""

    meta: dict[str, Any]
    """Of a set, PREFIX.json without its lists of shards and files; of a shard, all of its JSON."""
    ends: np.ndarray
    num_bytes: np.ndarray
    idx_sha256: np.ndarray
    names: np.ndarray
    """The arrays of the file, see above; names as bytes [n]."""

    @classmethod
    def of_shards(cls, meta: dict[str, Any], shards: Iterable[tuple[Path, Mapping[str, Any]]]) -> "SetIndex":
        """From the JSON of the set, and prefix and JSON of each shard. Raises UserError where a number of packs is missing."""
        ends, num_bytes, checksums, names = [0], [], [], []
        for prefix, of_shard in shards:
            packs = of_shard["counts"].get("packs")
            if type(packs) is not int:
                raise UserError(f"{prefix}.json: says {packs} packs; {metadata.REMEDY}")
            ends.append(ends[-1] + packs)
            if ends[-1] >= 2**63:
                raise UserError(f"{prefix}.json: says {packs:,} packs, which no shard has; {metadata.REMEDY}")
            files = [of_shard["files"].get(f"{prefix.name}{suffix}", {}) for suffix in (".bin", ".idx")]
            num_bytes.append([file.get("bytes", -1) for file in files])
            checksums.append(_digest(files[1].get("sha256")))
            names.append(prefix.name.encode())
        return cls(
            meta=meta,
            ends=np.array(ends[1:], np.int64),
            num_bytes=np.array(num_bytes, np.int64).reshape(-1, 2),
            idx_sha256=np.frombuffer(b"".join(checksums), np.uint8).reshape(-1, 32),
            names=np.array(names, np.bytes_),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, number: int) -> str:
        """The name of a shard."""
        return self.names[number].decode()

    def write(self, prefix: Path) -> None:
        """Write PREFIX.shards for PREFIX.json, whose checksum `meta` has. Raises UserError where the disk takes no more."""
        meta = json.dumps(self.meta, ensure_ascii=False).encode()
        meta += b" " * (-len(meta) % 8)
        arrays = b"".join(array.tobytes() for array in (self.ends, self.num_bytes, self.idx_sha256, self.names))
        sizes = (len(meta), len(self), self.names.dtype.itemsize)
        content = HEADER.pack(bytes.fromhex(self.meta["checksum"]), *sizes) + meta + arrays
        with atomic_write(with_suffix(prefix, SUFFIX), "wb") as file:
            file.write(MAGIC + sha256(content).digest() + content)

    def require_files(self, folder: Path, check: Check) -> None:
        """Raise UserError naming a file that is missing or has another size than its JSON says."""
        if check == "nothing":
            return
        if check == "names":
            there = set(os.listdir(folder))
            for name in map(bytes.decode, self.names.tolist()):
                for file in (f"{name}.bin", f"{name}.idx"):
                    if file not in there:
                        raise UserError(f"{folder / file}: missing; {metadata.REMEDY}")
            return
        first, rest = range(len(self))[:PROBED], range(len(self))[PROBED:]
        start = time.monotonic()
        self._require_sizes(folder, first)
        if time.monotonic() - start < NEAR_S * PROBED:  # threads would wait for each other, at three times the CPU
            self._require_sizes(folder, rest)
            return
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            list(threads.map(lambda share: self._require_sizes(folder, rest[share::NUM_THREADS]), range(NUM_THREADS)))

    def _require_sizes(self, folder: Path, numbers: range) -> None:
        of = slice(numbers.start, numbers.stop, numbers.step)
        for name, sizes in zip(self.names[of].tolist(), self.num_bytes[of].tolist(), strict=True):
            start = os.path.join(folder, name.decode())
            for suffix, expected in zip((".bin", ".idx"), sizes, strict=True):
                try:
                    found = os.stat(start + suffix).st_size
                except OSError:
                    raise UserError(f"{start}{suffix}: missing; {metadata.REMEDY}") from None
                require_size(start + suffix, found, expected)


def require_size(path: str | Path, found: int, expected: int) -> None:
    """Raise UserError where a file of `found` bytes should have others; -1: its JSON does not say how many."""
    if found != expected:
        said = None if expected < 0 else expected
        raise UserError(f"{path}: {found} bytes, but its JSON says {said}; {metadata.REMEDY}")


def _digest(stated: object) -> bytes:
    """A checksum in hex as bytes: zeros where there is none, ones where no file has such a one."""
    if stated is None:
        return bytes(32)
    with suppress(ValueError):
        found = bytes.fromhex(str(stated))
        if len(found) == 32:
            return found
    return b"\xff" * 32


def open_index(prefix: Path) -> SetIndex:
    """The shards that `prefix` stands for. Raises UserError where a JSON is missing or broken.

    Reads two files of a set that has its PREFIX.shards. One without gets it, by the process that comes first.
    """
    found = load_index(prefix)
    if found is not None:
        return found
    meta = metadata.read(prefix)
    if "shards" not in meta:
        return SetIndex.of_shards(meta, [(prefix, meta)])
    if not metadata.read_checksum(prefix):
        return index_of_set(prefix, meta)
    if not os.access(prefix.parent, os.W_OK):
        if len(meta["shards"]) > MANY:
            warn(
                f"{prefix}{SUFFIX}: is missing, and its folder cannot be written: each process reads {len(meta['shards'])} JSONs; "
                f"run `python -m data_prep stats {prefix}` once where it can"
            )
        return index_of_set(prefix, meta)
    with lease(with_suffix(prefix, SUFFIX), wait=True):
        found = load_index(prefix)
        if found is None:
            found = index_of_set(prefix, meta)
            with suppress(UserError):  # a full disk: whoever comes next tries again
                found.write(prefix)
    return found


def index_of_set(prefix: Path, meta: dict[str, Any]) -> SetIndex:
    """The index of a set from its JSON and those of all its shards. Raises UserError."""
    shards = ((shard, metadata.read(shard)) for shard in map(prefix.with_name, meta["shards"]))
    index = SetIndex.of_shards(without_lists(meta), shards)
    require_sum(prefix, index)
    return index


def require_sum(prefix: Path, index: SetIndex) -> None:
    """Raise UserError where the shards of a set have other packs together than its JSON says."""
    stated, found = index.meta["counts"].get("packs"), int(index.ends[-1])
    if found != stated:
        raise UserError(f"{prefix}.json: says {stated} packs, its shards have {found}; {metadata.REMEDY}")


def without_lists(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a set without what grows with the number of shards."""
    return {key: value for key, value in meta.items() if key not in ("shards", "files")}


def load_index(prefix: Path) -> SetIndex | None:
    """PREFIX.shards, mapped; None where there is none, or where it is broken or belongs to another PREFIX.json."""
    try:
        with open(with_suffix(prefix, SUFFIX), "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # of an empty file
        return None
    body = memoryview(content)[START:]
    if len(body) < HEADER.size or content[:START] != MAGIC + sha256(body).digest():
        return None
    made_from, meta_bytes, count, width = HEADER.unpack_from(body)
    if made_from != metadata.read_checksum(prefix):
        return None
    start = HEADER.size + meta_bytes
    meta = json.loads(bytes(body[HEADER.size : start]))
    arrays = []
    for dtype, columns in ((np.int64, 1), (np.int64, 2), (np.uint8, 32), (np.dtype(f"S{width}"), 1)):
        arrays.append(np.frombuffer(body, dtype, count * columns, start))
        start += arrays[-1].nbytes
    return SetIndex(meta, arrays[0], arrays[1].reshape(-1, 2), arrays[2].reshape(-1, 32), arrays[3])
