"""Is an output of data_prep what was written? Every byte of it, whatever it is: shards, parts, a manifest, a codec."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from data_prep.learnt_notes import note_of
from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.verify import verify, verify_assets, verify_files
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.manifest.text_files import suffix_of
from ttt_dist.util.atomic_files import sha256_file, sha256_folder
from ttt_dist.util.errors import UserError

Tick = Callable[[], None]
MAX_PROBLEMS = 1000  # of a folder of parts: one file may claim that there are billions


def check(path: Path, tick: Tick) -> list[str]:
    """The problems of an output, one line each: none where it is sound. Calls `tick` after each pack.

    `path` is a prefix of shards, a folder of codes or samples, a manifest, or a folder of a codec or tokenizer that was
    learnt. Raises UserError where it is none of them.
    """
    if path.is_dir():
        if note_of(path).is_file() and not any(path.glob("part-*")):
            return _check_learnt(path)
        return _check_parts(path, tick)
    if suffix_of(path) == ".jsonl":
        return _check_manifest(path)
    return verify(path, tick)


def _check_learnt(folder: Path) -> list[str]:
    note = note_of(folder)
    content = note.read_bytes()
    if not metadata.is_rendered(content):
        return [f"{note}: changed since it was written"]
    same = json.loads(content).get("sha256") == sha256_folder(folder)
    return [] if same else [f"{folder}: checksum differs, its contents have changed"]


def _check_manifest(path: Path) -> list[str]:
    """A manifest against the report that was written with it."""
    damaged = []
    for report in sorted(path.parent.glob("*.report.json")):
        content = report.read_bytes()
        if not metadata.is_rendered(content):
            damaged.append(f"{report}: changed since it was written")
            continue
        manifests = json.loads(content).get("manifests")
        record = manifests.get(path.name) if isinstance(manifests, dict) else None
        if not isinstance(record, dict):
            continue
        if not path.is_file():
            return [f"{path}: missing"]
        return (
            []
            if sha256_file(path) == record.get("sha256")
            else [f"{path}: checksum differs, its contents have changed"]
        )
    if damaged:
        return damaged
    raise UserError(f"{path.parent}: no *.report.json here knows {path.name}; make the manifest again")


def _check_parts(folder: Path, tick: Tick) -> list[str]:
    """All parts that there are to be; with them tokenizer, codec and template.json, and the notes of what was learnt."""
    found = sorted(folder.glob("part-*.json"))
    if not found:
        raise UserError(f"{folder}: holds no part-*.json, and no note says that it was learnt; name another")
    problems: list[str] = []
    for note in sorted(folder.glob("*.learnt.json")):
        problems += _check_learnt(folder / note.name.removesuffix(".learnt.json"))
    totals = set()
    for path in found:
        content = path.read_bytes()
        if metadata.is_rendered(content):
            parts = json.loads(content).get("parts")
            totals.add(parts if isinstance(parts, int) else None)
    if len(totals) > 1:
        problems.append(f"{folder}: holds parts of several runs, of {', '.join(sorted(map(str, totals)))} parts")
    for number in range(max((total for total in totals if isinstance(total, int)), default=len(found))):
        problems += _check_part(part_prefix(folder, number), tick)
        if len(problems) > MAX_PROBLEMS:
            return [*problems, f"{folder}: and more; the parts after {number} were not looked at"]
    return problems


def _check_part(prefix: Path, tick: Tick) -> list[str]:
    path = with_suffix(prefix, ".json")
    if not path.is_file():
        return [f"{path}: missing"]
    content = path.read_bytes()
    if not metadata.is_rendered(content):
        return [f"{path}: changed since it was written"]
    part = json.loads(content)
    if part.get("format") == metadata.FORMAT:
        return verify(prefix, tick)
    try:
        metadata.require_shape(part, path, "write it again")
    except UserError as error:
        return [str(error)]
    return [*verify_files(prefix, part.get("files", {})), *verify_assets(prefix.parent, part.get("beside", {}))]
