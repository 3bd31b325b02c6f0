"""Corpora of one's own: names of files that say all, and manifests in JSONL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, clip_seconds, require_folder, walk
from ttt_dist.audio.containers import Containers
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import Entry, with_paths
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.errors import UserError


def read_pattern(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """Files whose names say all, such as `{text}_{speaker}_{index}.wav`; `{text}` is needed, other fields are free.

    The pattern may hold folders (`{speaker}/{text}-{index}.flac`). Files of another extension are passed over.
    """
    if not options.pattern:
        raise UserError("--pattern: reader pattern needs one, e.g. '{text}_{speaker}_{index}.wav'")
    pattern = compile_pattern(options.pattern)
    suffix = Path(options.pattern).suffix.lower()
    folder = require_folder(options.source)
    for path in walk(folder, problems):
        if path.suffix.lower() != suffix:
            problems.skip(f"not {suffix}", str(path))
            continue
        name = path.relative_to(folder).as_posix()
        match = pattern.fullmatch(name)
        if match is None:
            message = f"{path}: does not match the pattern {options.pattern}; rename it or move it away"
            problems.report(message, "does not match")
            continue
        entry = {"id": name.removesuffix(path.suffix), "audio": str(path), **match.groupdict()}
        if options.lang:
            entry["lang"] = options.lang
        if options.wants(entry.get("split", ""), problems, str(path)) and add_duration(entry, problems, str(path)):
            yield entry


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`{text}_{speaker}_{index}.wav` as a regular expression with those groups; a field holds no `/`.

    Raises UserError where it has no `{text}`, names a field twice, or has no extension.
    """
    parts = re.split(r"\{(\w+)\}", pattern)
    names = parts[1::2]
    if "text" not in names:
        raise UserError(f"--pattern {pattern}: has no {{text}}; say where the spoken words stand in the name")
    if len(set(names)) < len(names) or {"id", "audio", "duration"} & set(names):
        raise UserError(f"--pattern {pattern}: a field stands twice or is one of id, audio, duration; rename it")
    if not Path(pattern).suffix or "{" in Path(pattern).suffix:
        raise UserError(f"--pattern {pattern}: has no extension; end it with one, such as .wav")
    pieces = [f"(?P<{part}>[^/]+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(pieces))


def read_jsonl(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A JSONL file of manifest lines (ttt_dist/manifest/entry.py), paths relative to the file or absolute; fields are kept.

    `duration` is filled in: the length of `audio`, or of all recordings of the turns or segments.
    """
    folder = options.audio_root or options.source.parent
    containers = Containers()
    for place, line in read_manifest(options.source, problems):
        entry = with_paths(line, lambda name: str(folder / name))
        if isinstance(entry.get("text"), str):
            entry["text"] = entry["text"].strip()
        if options.lang:
            entry.setdefault("lang", options.lang)
        if options.wants(str(entry.get("split", "")), problems, place) and _measure(entry, problems, place, containers):
            yield entry


def _measure(entry: Entry, problems: Problems, place: str, containers: Containers) -> bool:
    """Open all recordings of an entry and note the seconds; False, reported, where one is bad."""
    if not entry.get("turns") and not entry.get("segments") and not entry.get("speech"):
        return add_duration(entry, problems, place, containers)
    try:
        seconds = [clip_seconds(dict(clip), place, containers) for clip in clips(entry)]
    except (OSError, ValueError) as error:
        problems.report(error if place in str(error) else f"{place}: {error}", "bad audio")
        return False
    if entry.get("audio") and not entry.get("segments"):
        entry["duration"] = seconds[0]  # of the entry's own recording, which comes first
    elif seconds:
        entry["duration"] = round(sum(seconds), 6)
    return True
