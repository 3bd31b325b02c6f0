"""What readers share: walking folders, lines of `KEY VALUE`, lengths of recordings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.audio.containers import Containers
from ttt_dist.audio.io import audio_seconds
from ttt_dist.manifest.entry import Entry, bad_path, is_unicode
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import numbered_lines
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from data_prep.readers import ReaderOptions

AUDIO_SUFFIXES = {".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".webm"}
TOLERANCE_SECONDS = 0.01  # that a piece may reach beyond its recording: corpora round their times


def require_folder(source: Path, flag: str = "--source") -> Path:
    """The folder itself. Raises UserError where it is none."""
    if not source.is_dir():
        raise UserError(f"{source}: is no folder; correct {flag}")
    return source


def require_file(path: Path) -> Path:
    """The file itself. Raises UserError where it is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct --source")
    return path


def walk(folder: Path, problems: Problems) -> Iterator[Path]:
    """All files below a folder in a fixed order, links to folders included, each folder once.

    Folders that may not be listed and names that are not UTF-8 are reported.
    """
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        problems.report(f"{error.filename}: cannot be listed ({error.strerror}); change its permissions", "no access")

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if is_unicode(str(path)):
                yield path
            else:
                problems.report(f"{str(path)!r}: its name is not UTF-8; rename it", "not UTF-8")


def lines_of(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """The `numbered_lines` of one of a corpus's files; one that cannot be read is reported, and the rest goes on."""
    try:
        yield from numbered_lines(path, problems)
    except UserError as error:
        problems.report(error, "no access")


def is_there(path: Path, problems: Problems, place: str) -> bool:
    """Whether a recording whose length the corpus states is there; False, reported, where it is not."""
    reason = bad_path(str(path))
    if reason is None and path.is_file():
        return True
    problems.report(f"{place}: {path}: {reason or 'no such file'}; fetch it, or remove the line", "no recording")
    return False


def add_duration(entry: Entry, problems: Problems, place: str, containers: Containers | None = None) -> bool:
    """Open the entry's audio and note its seconds; False, reported, where it is bad."""
    try:
        entry["duration"] = clip_seconds(entry, place, containers)
    except (OSError, ValueError) as error:  # whatever the system says of such a name: it is this line's fault alone
        problems.report(error if place in str(error) else f"{place}: {error}", "bad audio")
        return False
    return True


def clip_seconds(clip: Entry, place: str, containers: Containers | None = None) -> float:
    """A clip's length, from the headers of its files. Raises UserError where one is bad, or a piece outside its file."""
    whole = _whole_seconds(clip, containers or Containers())
    offset = clip.get("offset")
    if offset is None:
        return round(whole, 6)
    duration = clip.get("duration")
    duration = round(whole - offset, 6) if duration is None else duration
    if duration <= 0 or offset + duration > whole + TOLERANCE_SECONDS:
        raise UserError(
            f"{place}: the piece at offset {offset} s of {duration} s does not lie within {clip['audio']} "
            f"of {whole:.3f} s; correct the line"
        )
    return float(duration)


def _whole_seconds(clip: Entry, containers: Containers) -> float:
    audio = clip["audio"]
    if isinstance(audio, list):
        return sum(map(audio_seconds, audio)) + sum(clip.get("gaps") or []) + (clip.get("tail") or 0.0)
    if not clip.get("member"):
        return audio_seconds(audio)
    return audio_seconds(*containers.named(Path(audio), clip["member"]))


def is_complete(entry: Entry, options: ReaderOptions, problems: Problems, place: str) -> bool:
    """Whether the entry has a text and a length, which is noted where it is not known; --lang goes before the corpus's."""
    if options.lang:
        entry["lang"] = options.lang
    if not entry["text"]:
        problems.report(f"{place}: utterance {entry['id']} has no text; complete or remove it", "no text")
        return False
    known = entry.get("duration") and "offset" not in entry
    return bool(known) or add_duration(entry, problems, place)
