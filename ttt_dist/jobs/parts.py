"""Parts on disk: the stretches of lines that a manifest is cut into, and the JSON that completes each part.

A folder of parts holds PREFIX.json per part, with the number of the part and of all parts, what it was made from, a
checksum per file and one of itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.manifest.text_files import reading
from ttt_dist.util.atomic_files import atomic_write, sha256_file
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_bytes

CHUNK_BYTES = 1 << 24
PACKAGES = ("ttt-dist", "torch", "transformers", "megatron-core", "numpy")


@dataclass(frozen=True, kw_only=True)
class LineRange:
    """Consecutive lines of a file, by the bytes of its text: number `first` (from 1) and the following."""

    path: Path
    start: int
    stop: int
    first: int
    num_lines: int

    def read(self) -> bytes:
        """The bytes. Raises UserError where the file has become shorter."""
        with reading(self.path) as file:
            file.seek(self.start)
            content = file.read(self.stop - self.start)
        if len(content) != self.stop - self.start:
            raise UserError(f"{self.path}: has changed while it was read; run this again")
        return content

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """(`file:line`, raw line) of every line that is not blank."""
        for number, line in enumerate(self.read().split(b"\n"), start=self.first):
            if line.strip():
                yield f"{self.path}:{number}", line

    def sha256(self) -> str:
        """The checksum of the lines."""
        return hashlib.sha256(self.read()).hexdigest()


def cut_lines(path: Path, lines_per_part: int) -> list[LineRange]:
    """Cut a file into stretches of `lines_per_part` lines; one pass over its bytes.

    Raises UserError on an empty file.
    """
    borders, number, offset, last = [0], 0, 0, b""
    with reading(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            first = -(number + 1) % lines_per_part  # the first end in this chunk that is a border
            borders += (ends[first::lines_per_part] + offset + 1).tolist()
            number += len(ends)
            offset += len(chunk)
            last = chunk[-1:]
    if not offset:
        raise UserError(f"{path}: is empty; make the manifest again")
    if borders[-1] != offset:
        borders.append(offset)
    lines = [lines_per_part] * (len(borders) - 1)
    lines[-1] = number - lines_per_part * (len(lines) - 1) + (last != b"\n")
    return [
        LineRange(path=path, start=start, stop=stop, first=1 + lines_per_part * part, num_lines=lines[part])
        for part, (start, stop) in enumerate(itertools.pairwise(borders))
    ]


def part_prefix(folder: Path, number: int) -> Path:
    """FOLDER/part-00007."""
    return folder / f"part-{number:05d}"


def read_part(prefix: Path, again: str) -> dict[str, Any] | None:
    """The JSON of a part; None where there is none. Raises UserError where it is damaged; `again` is the remedy."""
    path = with_suffix(prefix, ".json")
    remedy = f"remove it, then {again}"
    try:
        content = read_bytes(path, remedy)
    except FileNotFoundError:
        return None
    if not metadata.is_rendered(content):
        raise UserError(f"{path}: is damaged, its checksum differs; {remedy}")
    part = dict(json.loads(content))
    metadata.require_shape(part, path, remedy)
    return part


def write_part(prefix: Path, values: dict[str, Any]) -> None:
    """Write the JSON of a part: the part is complete then."""
    with atomic_write(with_suffix(prefix, ".json")) as file:
        file.write(metadata.render(values))


def remove_part(prefix: Path) -> None:
    """Remove a part, its JSON first."""
    for suffix in (".json", ".bin", ".idx", ".jsonl"):
        with_suffix(prefix, suffix).unlink(missing_ok=True)


def has_files(prefix: Path, part: dict[str, Any]) -> bool:
    """Whether the files that a part's JSON names are there with their sizes."""
    paths = [(prefix.with_name(name), record["bytes"]) for name, record in part.get("files", {}).items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def describe_file(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, for the JSON of its part."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def find_parts(folder: Path, made_by: str) -> list[tuple[Path, dict[str, Any]]]:
    """(prefix, JSON) of every part of a folder, in order.

    Raises UserError where there is none, one is missing or damaged, or parts do not belong together.
    """
    again = f"run data_prep {made_by} again"
    first = read_part(part_prefix(folder, 0), again)
    if first is None:
        known = sorted(folder.glob("part-*.json"))
        if not known:
            raise UserError(
                f"{folder}: no complete part-*.json here; run data_prep {made_by} first, or name its folder"
            )
        first = read_part(known[0].with_suffix(""), again) or {}
    found = []
    for number in range(first.get("parts", 1)):
        prefix = part_prefix(folder, number)
        part = read_part(prefix, again)
        if part is None:
            raise UserError(f"{prefix}.json: missing, there are to be {first['parts']} parts; {again}, all its tasks")
        if "counts" not in part:
            raise UserError(f"{prefix}.json: lacks 'counts'; remove it, then {again}")
        if part.get("parts") != first.get("parts"):
            raise UserError(
                f"{prefix}.json: one of {part.get('parts')} parts, others of {first['parts']}; {again} anew"
            )
        found.append((prefix, part))
    return found


def require_no_others(folder: Path, num_parts: int) -> None:
    """Raise UserError where parts of a longer run lie in `folder`: they would be taken for ours."""
    for path in sorted(folder.glob("part-*.json")):
        number = path.stem.removeprefix("part-")
        if not number.isdigit() or int(number) >= num_parts:
            raise UserError(
                f"{path}: left by another run, this one has {num_parts} part(s); remove it or choose another --out"
            )


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a part's content, for its JSON."""
    return {name: version(name) for name in PACKAGES}
