"""A part of codes being written: PREFIX.bin, .idx and .jsonl under temporary names until all of it is there, then .json."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ttt_dist.data.indexed import new_builder
from ttt_dist.data.metadata import asset_checksums, with_suffix
from ttt_dist.jobs.parts import describe_file, write_part
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.reading import write_entry
from ttt_dist.util.atomic_files import commit, open_new, remove_leftovers, temporary_name, writing

if TYPE_CHECKING:
    from ttt_dist.audio.codec import Codes

KINDS = ("bin", "idx", "jsonl")


class PartWriter:
    """Writes PREFIX.bin, .idx and .jsonl under temporary names; `finish` gives them their names, then writes .json.

    Use as a context manager: left without `finish`, it removes what it wrote.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.paths = {kind: with_suffix(prefix, f".{kind}") for kind in KINDS}
        aside = with_suffix(prefix, ".aside")
        remove_leftovers(*self.paths.values(), aside, with_suffix(prefix, ".json"))
        with writing(prefix):
            prefix.parent.mkdir(parents=True, exist_ok=True)
            self._builder = new_builder(temporary_name(self.paths["bin"]), multimodal=False)
            self._aside: IO[bytes] = open_new(temporary_name(aside), "w+b")
            self._lines: IO[str] = open_new(temporary_name(self.paths["jsonl"]), "w")

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._builder.data_file, self._lines, self._aside):
            with contextlib.suppress(OSError):  # a full disk: the write has raised it, and the file goes now
                file.close()
        for path in (*self.paths.values(), with_suffix(self.prefix, ".aside")):
            temporary_name(path).unlink(missing_ok=True)

    def lay_aside(self, codes: Sequence[Codes]) -> list[tuple[int, int]]:
        """Keep codes in a file of their own until `from_aside` wants them: a part of many codebooks is a gigabyte of them."""
        with writing(self.paths["bin"]):
            places = []
            for one in codes:
                places.append((self._aside.seek(0, 2), len(one)))
                self._aside.write(one.tobytes())
            return places

    def from_aside(self, places: Sequence[tuple[int, int]]) -> list[Codes]:
        """Codes that were laid aside."""
        found = []
        for start, count in places:
            self._aside.seek(start)
            found.append(np.fromfile(self._aside, np.int32, count))
        return found

    def add(self, entry: Entry, codes: Sequence[Codes]) -> None:
        """Append one utterance: the codes of each of its clips."""
        with writing(self.paths["bin"]):
            for one in codes:
                self._builder.add_item(one)
            self._builder.end_document()
        with writing(self.paths["jsonl"]):
            write_entry(self._lines, entry)

    def finish(self, meta: dict[str, Any]) -> None:
        """Name the files and write PREFIX.json: `meta`, and size and SHA-256 of each."""
        with writing(self.paths["idx"]):
            self._builder.finalize(temporary_name(self.paths["idx"]))
        with writing(self.paths["jsonl"]):
            self._lines.close()
        temporary_name(
            with_suffix(self.prefix, ".aside")
        ).unlink()  # before the part is complete: nobody tidies up after that
        files = {path.name: describe_file(temporary_name(path)) for path in self.paths.values()}
        with_suffix(self.prefix, ".json").unlink(missing_ok=True)
        for path in self.paths.values():
            with writing(path):
                commit(temporary_name(path), path)
        write_part(self.prefix, {**meta, "files": files, "beside": asset_checksums(self.prefix.parent)})
