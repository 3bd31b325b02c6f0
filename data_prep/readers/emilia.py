"""Emilia and Emilia-YODAS: a JSON object and an MP3 per utterance, in tars, beside each other, or listed in JSONL.

Object: `id` (or `_id`), `wav` (path, in JSONL), `text`, `duration`, `speaker`, `language`, `dnsmos`. Its `duration` is
believed; that the recording is there is checked.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import AUDIO_SUFFIXES, add_duration, is_there, lines_of, walk
from ttt_dist.audio.containers import Containers
from ttt_dist.audio.tar_members import DAMAGE, tar_members
from ttt_dist.manifest.entry import Entry, decode_line, is_seconds, parse_object
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

MAX_JSON = 2**20  # bytes of one utterance's object


def read_emilia(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A folder, or one file of it: `.tar` with KEY.json and KEY.mp3, `.jsonl` with `wav`, or `.json` beside `.mp3`."""
    if not options.source.exists():
        raise UserError(f"{options.source}: no such file or folder; correct --source")
    paths = iter([options.source]) if options.source.is_file() else walk(options.source, problems)
    for path in paths:
        if path.suffix == ".tar":
            yield from _read_tar(path, options, problems)
        elif path.suffix == ".jsonl":
            yield from _read_lines(path, options, problems)
        elif path.suffix == ".json":
            yield from _read_pair(path, options, problems)
        elif path.name.endswith((".tar.gz", ".tgz")):
            message = f"{path}: is compressed, its members cannot be read by seeking; unpack it to a .tar or a folder"
            problems.report(message, "compressed")


def _read_lines(path: Path, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    for place, line in lines_of(path, problems):
        entry = _entry(line, place, options, problems)
        if entry is None:
            continue
        if not isinstance(entry.get("wav"), str):
            problems.report(f"{place}: field 'wav' is missing; give the path of the recording")
            continue
        entry["audio"] = str(path.parent / entry.pop("wav"))
        if _has_length(entry, problems, place):
            yield entry


def _read_pair(path: Path, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    audio = next((path.with_suffix(s) for s in sorted(AUDIO_SUFFIXES) if os.path.isfile(path.with_suffix(s))), None)
    if audio is None:
        problems.report(f"{path}: has no recording beside it; fetch it, or remove the file", "no recording")
        return
    try:
        raw = path.read_bytes()
    except OSError as error:
        problems.report(f"{path}: cannot be read ({error.strerror}); change its permissions", "no access")
        return
    entry = _object(raw, str(path), options, problems)
    if entry is not None:
        entry["audio"] = str(audio)
        if _has_length(entry, problems, str(path)):
            yield entry


def _has_length(entry: Entry, problems: Problems, place: str) -> bool:
    """Whether the recording is there; its length is noted where the object does not state it."""
    entry.pop("wav", None)
    if "duration" in entry:
        return is_there(Path(entry["audio"]), problems, place)
    return add_duration(entry, problems, place)


def _read_tar(path: Path, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """The pairs of a tar in its order. Of the recordings only the place is taken, and of a pair its later half ends the
    wait: memory holds what has no other half yet."""
    waiting: dict[str, Entry] = {}
    containers = Containers()
    try:
        for tar, member in tar_members(path):
            half = _half(tar, member, path, options, problems)
            if half is None:
                continue
            key = member.name.rpartition(".")[0]
            entry = waiting.pop(key, {}) | half
            if not ("audio" in entry and "text" in entry):
                waiting[key] = entry
            elif _is_complete(entry, f"{path}: member {member.name}", problems, containers):
                yield entry
    except UserError as error:
        problems.report(error, "bad tar")
    except DAMAGE as error:
        problems.report(f"{path}: is damaged or no tar ({error}); fetch it again", "bad tar")
    for key, entry in waiting.items():
        missing = "object" if "audio" in entry else "recording"
        if not entry.get("left_out"):
            problems.report(f"{path}: member {key} has no {missing} beside it; fetch the file again", f"no {missing}")


def _half(
    tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, options: ReaderOptions, problems: Problems
) -> Entry | None:
    """The JSON half of a pair as fields, or the place of its recording; None for anything else."""
    suffix = Path(member.name).suffix.lower()
    if not member.isreg() or member.issparse():
        return None
    if suffix in AUDIO_SUFFIXES:
        return {"audio": str(path), "member": {"offset": member.offset_data, "size": member.size}}
    if suffix != ".json":
        return None
    place = f"{path}: member {member.name}"
    if member.size > MAX_JSON:
        problems.report(f"{place}: has {member.size:,} bytes, too many for an utterance's object; remove it")
        return {"left_out": True}
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    entry = _object(file.read(), place, options, problems)
    if entry is None:
        return {"left_out": True}
    entry.pop("wav", None)
    return entry


def _is_complete(entry: Entry, place: str, problems: Problems, containers: Containers) -> bool:
    return "duration" in entry or add_duration(entry, problems, place, containers)


def _object(raw: bytes, place: str, options: ReaderOptions, problems: Problems) -> Entry | None:
    try:
        line = decode_line(raw, place)
    except UserError as error:
        problems.report(error, "not UTF-8")
        return None
    return _entry(line, place, options, problems)


def _entry(line: str, place: str, options: ReaderOptions, problems: Problems) -> Entry | None:
    """An utterance's object as fields of an entry, still with `wav`; None, reported, where it lacks something."""
    try:
        fields = parse_object(line, place)
    except UserError as error:
        problems.report(error)
        return None
    name, text, seconds = fields.get("id") or fields.get("_id"), fields.get("text"), fields.get("duration")
    if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
        problems.report(f"{place}: has no 'id' or no 'text'; complete or remove it", "no text")
        return None
    entry: Entry = {"id": name, "text": text.strip()}
    if is_seconds(seconds) and seconds > 0:
        entry["duration"] = round(float(seconds), 6)
    lang = options.lang or fields.get("language")
    optional = {"lang": lang and str(lang).lower(), "speaker": fields.get("speaker"), "dnsmos": fields.get("dnsmos")}
    entry |= {key: value for key, value in optional.items() if value is not None}
    return entry | ({"wav": fields["wav"]} if "wav" in fields else {})
