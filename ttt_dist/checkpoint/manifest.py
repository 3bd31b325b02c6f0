"""The manifest of a checkpoint: every file with its size and SHA-256, written last. Without one a folder is incomplete."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ttt_dist.util.atomic_files import atomic_write, sha256_file
from ttt_dist.util.errors import UserError

MANIFEST = "manifest.json"


class FileSum(NamedTuple):
    """What a file must be."""

    bytes: int
    sha256: str


def file_sum(path: Path) -> FileSum:
    """Size and checksum of a file as it is on the disk."""
    return FileSum(path.stat().st_size, sha256_file(path))


def seal(folder: Path, files: Mapping[str, FileSum]) -> None:
    """Write the manifest of a folder whose other files are complete; names are relative to it."""
    values = {name: files[name]._asdict() for name in sorted(files)}
    with atomic_write(folder / MANIFEST) as file:
        json.dump({"files": values}, file, indent=1)


def seal_all(folder: Path) -> None:
    """`seal` whatever lies in a folder, by reading it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)
    seal(folder, {path.relative_to(folder).as_posix(): file_sum(path) for path in paths})


def read_manifest(folder: Path) -> dict[str, FileSum]:
    """The files that a sealed folder must have. Raises UserError where it has no readable manifest."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf8"))["files"]
        return {name: FileSum(int(entry["bytes"]), str(entry["sha256"])) for name, entry in values.items()}
    except FileNotFoundError:
        raise UserError(f"{folder}: not complete, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable manifest ({error})") from error


def require_whole(folder: Path) -> dict[str, FileSum]:
    """The quick check, without reading contents: every file is there in full. Returns the manifest. Raises UserError."""
    files = read_manifest(folder)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing")
        if path.stat().st_size != expected.bytes:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes instead of {expected.bytes:,}")
    return files


def require_sums(folder: Path, files: Mapping[str, FileSum], names: Iterable[str]) -> None:
    """The slow check: the files `names` have the contents that were written. Raises UserError."""
    for name in names:
        if sha256_file(folder / name) != files[name].sha256:
            raise UserError(f"{folder / name}: checksum differs from {MANIFEST}")
