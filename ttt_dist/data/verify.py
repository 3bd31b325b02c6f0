"""Every check of a shard: bytes against checksums, the index against itself, packs against the token classes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ttt_dist.data import metadata
from ttt_dist.data.document import IS_TARGET, STARTS_SAMPLE, Document, check_document
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.set_index import SUFFIX, index_of_set, load_index
from ttt_dist.data.shards import ShardReader
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError

MAX_PACK_PROBLEMS = 20


def verify(prefix: str | Path, tick: Callable[[], None] = lambda: None, is_member: bool = False) -> list[str]:
    """The problems of the shard at `prefix`, or of the member of a set: one line each, none where it is sound. Calls `tick`
    after each pack."""
    try:
        meta = metadata.read(prefix)
    except UserError as error:
        return [str(error)]
    problems = [] if metadata.is_intact(prefix) else [f"{with_suffix(prefix, '.json')}: changed since it was written"]
    problems += verify_assets(Path(prefix).parent, meta.get("beside", {}))
    if "shards" in meta and is_member:
        return [f"{with_suffix(prefix, '.json')}: a set of shards within a set"]
    if "shards" in meta:
        return problems or _verify_set(Path(prefix), meta, tick)
    problems += verify_files(Path(prefix), meta["files"])
    return problems or (_verify_packs(prefix, tick) if meta["files"] else [])


def _verify_set(prefix: Path, meta: dict[str, Any], tick: Callable[[], None]) -> list[str]:
    problems = verify_files(prefix, meta["files"])
    if problems:
        return problems
    for name in meta["shards"]:
        problems += verify(prefix.with_name(name), tick, is_member=True)
    return problems or _verify_index(prefix, meta)


def _verify_index(prefix: Path, meta: dict[str, Any]) -> list[str]:
    """PREFIX.shards is a copy: what it says otherwise than the JSONs is wrong, and what is broken, or of another time, is of no use."""
    path = with_suffix(prefix, SUFFIX)
    if not path.exists():
        return []
    found = load_index(prefix)
    try:
        right = index_of_set(prefix, meta)
    except UserError as error:
        return [str(error)]
    names = ("meta", "ends", "num_bytes", "idx_sha256", "names")
    if found is not None and all(np.array_equal(getattr(found, name), getattr(right, name)) for name in names):
        return []
    return [f"{path}: differs from its shards; remove it, it is made again"]


def verify_files(prefix: Path, files: dict[str, dict[str, object]]) -> list[str]:
    """What is wrong with the files that a JSON names, beside `prefix`, by their sizes and checksums."""
    problems = []
    for name, record in files.items():
        path = prefix.with_name(name)
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != record.get("bytes"):
            problems.append(f"{path}: {path.stat().st_size} bytes, but the JSON says {record.get('bytes')}")
        elif sha256_file(path) != record.get("sha256"):
            problems.append(f"{path}: checksum differs, its contents have changed")
    return problems


def verify_assets(folder: Path, checksums: dict[str, str]) -> Iterator[str]:
    """What is wrong with the tokenizer, codec and template.json of a folder."""
    for name, checksum in checksums.items():
        if not (folder / name).exists():
            yield f"{folder / name}: missing"
        elif metadata.asset_checksum(folder / name) != checksum:
            yield f"{folder / name}: checksum differs, its contents have changed"


def _verify_packs(prefix: str | Path, tick: Callable[[], None]) -> list[str]:
    try:
        reader = ShardReader(prefix)
    except UserError as error:
        return [str(error)]
    problems: list[str] = []
    totals = np.zeros(4, dtype=np.int64)
    for index in range(len(reader)):
        document = reader.document(index)
        found = check_document(document, reader.layout, reader.seq_len)
        problems += [f"{prefix}: pack {index}: {problem}" for problem in found]
        totals += _count(document, reader.layout)
        tick()
        if len(problems) > MAX_PACK_PROBLEMS:
            return [*problems[:MAX_PACK_PROBLEMS], f"{prefix}: and more; the packs after {index} were not looked at"]
    names = ("samples", "tokens", "audio_tokens", "target_tokens")
    for name, total in zip(names, totals.tolist(), strict=True):
        stated = reader.meta["counts"].get(name)
        if stated != total:
            problems.append(f"{with_suffix(prefix, '.json')}: counts {stated} {name}, the packs hold {total}")
    return problems


def _count(document: Document, layout: TokenLayout) -> tuple[int, int, int, int]:
    known = document.ids[(document.ids >= 0) & (document.ids < layout.vocab_size)]
    return (
        int(np.count_nonzero(document.modes & STARTS_SAMPLE)),
        len(document.ids),
        int(np.count_nonzero(layout.is_audio[known])),
        int(document.lengths[(document.modes & IS_TARGET) != 0].sum()),
    )
