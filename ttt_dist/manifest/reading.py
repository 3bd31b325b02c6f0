"""Manifests: one JSON object per line and utterance, read with what is bad reported by file and line.

Fields: `id`, `audio` (a path, or a list of paths that are joined; relative ones start from the manifest's folder),
`member` (which part of a container file), `gaps` (seconds of silence before each path of a list), `offset` and
`duration` (seconds), `text` or `label`, `turns`, `segments`, `speech` (see ttt_dist/manifest/entry.py), `lang`, `speaker`,
`split`, and any others, which are kept. What is bad is counted and left out; a job with
more bad lines than `--max-errors` allows keeps its good work and ends with exit status 1.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

from ttt_dist.manifest.entry import Entry, decode_line, parse_entry, parse_plain_lines
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import raw_lines
from ttt_dist.util.errors import UserError

BATCH = 1024
RECENT_IDS = 2**18  # in a set of Python's; older ones in a sorted array of 8 bytes each


class SeenIds:
    """Which ids came before, in 8 bytes each: a manifest may have hundreds of millions.

    Kept are 64-bit hashes. Of 300 million ids two different ones share a hash with a probability of 0.3 %: one of them
    would then be reported as a repetition.
    """

    def __init__(self) -> None:
        self._old: memoryview | list[int] = []  # sorted
        self._recent: set[int] = set()

    def add(self, name: str) -> bool:
        """Remember an id; False where it came before."""
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        at = bisect_left(self._old, key)
        if key in self._recent or (at < len(self._old) and self._old[at] == key):
            return False
        self._recent.add(key)
        if len(self._recent) >= RECENT_IDS:
            self._merge()
        return True

    def add_all(self, names: Sequence[str]) -> list[bool]:
        """`add` of each, in their order."""
        import numpy as np

        if not names:
            return []
        digests = b"".join([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names])
        keys = np.frombuffer(digests, "<u8")
        old = np.asarray(self._old, np.uint64)
        in_order = np.sort(keys)  # looked up in an array of millions, neighbours find their place in the cache
        at = np.minimum(np.searchsorted(old, in_order), len(old) - 1)
        known = set(in_order[old[at] == in_order].tolist()) if len(old) else set()
        each = keys.tolist()
        fresh = set(each)
        if len(fresh) == len(each) and not known and self._recent.isdisjoint(fresh):  # as nearly always
            is_new = [True] * len(each)
        else:
            seen, is_new = known | (self._recent & fresh), []
            for key in each:
                is_new.append(key not in seen)
                seen.add(key)
        self._recent |= fresh - known
        if len(self._recent) >= RECENT_IDS:
            self._merge()
        return is_new

    def _merge(self) -> None:
        import numpy as np

        merged = np.concatenate([np.asarray(self._old, np.uint64), np.fromiter(self._recent, np.uint64)])
        merged.sort(kind="stable")
        self._old = merged.data  # a memoryview: its items are Python's integers, which compare faster than numpy's
        self._recent.clear()


def numbered_lines(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line that is not blank; a line that is not UTF-8 is reported."""
    for place, raw in raw_lines(path):
        try:
            line = decode_line(raw, place)
        except UserError as error:
            problems.report(error, "not UTF-8")
            continue
        if line:
            yield place, line


Line = tuple[str, bytes, Entry]
"""A good line of a manifest: `file:line`, the line as it lies on the disk, its entry."""


def read_manifest(path: Path, problems: Problems) -> Iterator[tuple[str, Entry]]:
    """(`file:line`, entry) of every good line in order; bad ones, and ids that came before, are reported.

    An entry without `id` gets one from its line number.
    """
    for batch in read_batches(path, problems):
        for place, _, entry in batch:
            yield place, entry


def read_batches(path: Path, problems: Problems) -> Iterator[list[Line]]:
    """What `read_manifest` gives, up to BATCH lines at a time, whose ids are looked up together."""
    seen = SeenIds()
    lines = raw_lines(path)
    while batch := list(islice(lines, BATCH)):
        plain = parse_plain_lines([raw for _, raw in batch])
        good: list[Line] = []
        for (place, raw), entry in zip(batch, plain, strict=True):
            if entry is None and (entry := _look_closer(place, raw, problems)) is None:
                continue
            name = entry.get("id")
            if type(name) is not str or not name:
                entry["id"] = str(name or f"{path.stem}-{place.rpartition(':')[2]}")
            good.append((place, raw, entry))
        is_new = seen.add_all([entry["id"] for _, _, entry in good])
        if not all(is_new):
            _report_repeated(good, is_new, problems)
            good = [line for line, new in zip(good, is_new, strict=True) if new]
        yield good


def _look_closer(place: str, raw: bytes, problems: Problems) -> Entry | None:
    """The entry of a line that is not plain; None where it is blank, or bad and reported."""
    try:
        line = decode_line(raw, place)
    except UserError as error:
        problems.report(error, "not UTF-8")
        return None
    try:
        return parse_entry(line, place) if line else None
    except UserError as error:
        problems.report(error)
        return None


def _report_repeated(lines: list[Line], is_new: list[bool], problems: Problems) -> None:
    for (place, _, entry), new in zip(lines, is_new, strict=True):
        if not new:
            problems.report(f"{place}: id {entry['id']!r} came before; make ids unique", "id came before")


def entry_line(entry: Entry) -> str:
    """The line of an entry, its end included."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def write_entry(file: IO[str], entry: Entry) -> None:
    """Append one line."""
    file.write(entry_line(entry))


def relocate(audio: str | Path, folder: Path) -> str:
    """How a manifest in `folder` names `audio`: relative where it lies below, else absolute."""
    absolute, base = os.path.abspath(audio), os.path.abspath(folder)  # strings: paths as objects cost most of a listing
    start = base if base.endswith("/") else f"{base}/"
    return "." if absolute == base else absolute.removeprefix(start)
