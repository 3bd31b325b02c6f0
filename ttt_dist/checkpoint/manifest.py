"""The manifest of a checkpoint: every file with its size and SHA-256, written last. Without one a folder is incomplete."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ttt_dist.util.atomic_files import atomic_write, sha256_file
from ttt_dist.util.errors import UserError

MANIFEST = "manifest.json"


class FileChecksum(NamedTuple):
    """What a file must be."""

    bytes: int
    sha256: str


def file_checksum(path: Path) -> FileChecksum:
    """Size and checksum of a file as it is on the disk."""
    return FileChecksum(path.stat().st_size, sha256_file(path))


def write_manifest(folder: Path, files: Mapping[str, FileChecksum]) -> None:
    """Write the manifest of a folder whose other files are complete; names are relative to it."""
    values = {name: files[name]._asdict() for name in sorted(files)}
    with atomic_write(folder / MANIFEST) as file:
        json.dump({"files": values}, file, indent=1)


def write_manifest_of_folder(folder: Path) -> None:
    """`write_manifest` whatever lies in a folder, by reading it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)
    write_manifest(folder, {path.relative_to(folder).as_posix(): file_checksum(path) for path in paths})


def read_manifest(folder: Path) -> dict[str, FileChecksum]:
    """The files that a sealed folder must have. Raises UserError where it has no readable manifest."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf8"))["files"]
        return {name: FileChecksum(int(entry["bytes"]), str(entry["sha256"])) for name, entry in values.items()}
    except FileNotFoundError:
        raise UserError(f"{folder}: not complete, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not a readable manifest ({str(error)[:200]})") from error


def require_whole(folder: Path) -> dict[str, FileChecksum]:
    """The quick check, without reading contents: every file is there in full. Returns the manifest. Raises UserError."""
    files = read_manifest(folder)
    for name, expected in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: missing") from None
        except (OSError, ValueError) as error:  # a name that no file can have, too
            raise UserError(f"{folder}: a file of {MANIFEST} cannot be looked for ({str(error)[:200]})") from None
        if found != expected.bytes:
            raise UserError(f"{path}: has {found:,} bytes instead of {expected.bytes:,}")
    return files


def require_checksums(folder: Path, files: Mapping[str, FileChecksum], names: Iterable[str]) -> None:
    """The slow check: the files `names` have the contents that were written. Raises UserError."""
    for name in names:
        if name not in files:
            raise UserError(f"{folder / MANIFEST}: says nothing of {name}")
        if sha256_file(folder / name) != files[name].sha256:
            raise UserError(f"{folder / name}: checksum differs from {MANIFEST}")
