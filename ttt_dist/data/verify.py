"""Every check of a shard: bytes against checksums, the index against itself, packs against the token classes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.shards import IS_TARGET, STARTS_SAMPLE, Document, ShardReader
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError

MAX_PACK_PROBLEMS = 20


def verify(prefix: str | Path, tick: Callable[[], None] = lambda: None) -> list[str]:
    """The problems of the shard at `prefix`, one line each: none where it is sound. Calls `tick` after each pack."""
    try:
        meta = metadata.read(prefix)
    except UserError as error:
        return [str(error)]
    problems = [] if metadata.is_intact(prefix) else [f"{with_suffix(prefix, '.json')}: changed since it was written"]
    problems += verify_assets(Path(prefix).parent, meta.get("beside", {}))
    if "shards" in meta:
        return problems or _verify_set(Path(prefix), meta, tick)
    problems += verify_files(Path(prefix), meta["files"])
    return problems or (_verify_packs(prefix, tick) if meta["files"] else [])


def _verify_set(prefix: Path, meta: dict[str, Any], tick: Callable[[], None]) -> list[str]:
    problems = verify_files(prefix, meta["files"])
    if problems:
        return problems
    for name in meta["shards"]:
        problems += verify(prefix.with_name(name), tick)
    return problems


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


def check_document(document: Document, layout: TokenLayout, seq_len: int | None) -> Iterator[str]:
    """What is wrong with one document: its structure first, then ids, then the audio spans of its samples."""
    ids, _, modes = document
    if seq_len is not None and len(ids) > seq_len:
        yield f"{len(ids)} tokens, longer than seq_len {seq_len}"
    if not len(modes) or not modes[0] & STARTS_SAMPLE:
        yield "its first segment does not start a sample"
        return
    if (modes & ~(STARTS_SAMPLE | IS_TARGET)).any():
        yield "a mode byte has unknown bits"
    outside = np.flatnonzero((ids < 0) | (ids >= layout.vocab_size))
    if len(outside):
        yield f"token {outside[0]}: id {ids[outside[0]]} is outside the vocabulary of {layout.vocab_size}"
        return
    for name in ("pad", "mask"):
        stored = np.flatnonzero(ids == layout.special_ids[name])
        if len(stored):
            yield f"token {stored[0]}: {name} has no place in a stored sample"
    yield from _check_spans(document, layout)
    yield from _check_targets(document)


def _check_targets(document: Document) -> Iterator[str]:
    starts = np.flatnonzero(document.modes & STARTS_SAMPLE)
    has_target = np.logical_or.reduceat((document.modes & IS_TARGET) != 0, starts)
    if not has_target.all():
        yield f"sample {np.flatnonzero(~has_target)[0]}: no token of it is a target"


def _check_spans(document: Document, layout: TokenLayout) -> Iterator[str]:
    """A run of audio class is opened by a start-of-audio token of its sample, and its end stands only at its end.

    A span of the response must be closed; a span that the user gives must be followed by the prompt's end_of_audio.
    """
    ids = document.ids
    is_audio = layout.is_audio[ids]
    starts_sample = np.zeros(len(ids) + 1, dtype=bool)
    ends = np.cumsum(document.lengths)
    starts_sample[(ends - document.lengths)[(document.modes & STARTS_SAMPLE) != 0]] = True
    starts_sample[-1] = True
    is_target = np.repeat((document.modes & IS_TARGET) != 0, document.lengths)
    opens = (ids == layout.begin_of_audio) | (ids == layout.begin_of_quad)
    closes = (ids == layout.end_of_audio_new) | (ids == layout.end_of_audio_span_last)

    begins = is_audio & (starts_sample[:-1] | ~np.append(False, is_audio[:-1]))
    unopened = begins & (starts_sample[:-1] | ~np.append(False, opens[:-1]))
    goes_on = is_audio & np.append(is_audio[1:], False) & ~starts_sample[1:]
    finishes = is_audio & ~goes_on
    followed = np.append(ids[1:] == layout.end_of_audio, False) & ~starts_sample[1:]
    for bad, message in (
        (unopened, "audio without a start-of-audio token before it"),
        (closes & goes_on, "end of audio in the middle of a span"),
        (finishes & is_target & ~closes, "a span of the response that no end of audio closes"),
        (finishes & ~is_target & ~closes & ~followed, "audio of the prompt that no end_of_audio follows"),
    ):
        if bad.any():
            yield f"token {np.flatnonzero(bad)[0]}: {message}"
