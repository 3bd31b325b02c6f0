"""Readers: one per corpus layout, each yielding manifest entries in a fixed order.

An entry's `audio` is a path that this process can open. Every file is opened (its header) here, so that a broken one
is found when the corpus is listed and not hours later; its length becomes `duration`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.manifest import Entry, Problems, numbered_lines, read_manifest
from ttt_dist.audio.files import audio_seconds
from ttt_dist.errors import UserError
from ttt_dist.telemetry.console import say


@dataclass(frozen=True)
class ReaderOptions:
    """What the command line says about the corpus."""

    source: Path
    pattern: str | None = None
    lang: str | None = None


def read_librispeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A LibriSpeech tree: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt (`ID TEXT` per line) and ID.flac beside it."""
    transcripts = sorted(_folder(options.source).rglob("*.trans.txt"))
    for transcript in transcripts:
        named: set[str] = set()
        for place, line in numbered_lines(transcript, problems):
            name, _, text = line.partition(" ")
            named.add(name)
            entry = _librispeech_entry(transcript, name, text.strip(), options)
            if not entry["text"]:
                problems.report(f"{place}: utterance {name} has no text; complete or remove the line")
            elif _add_duration(entry, problems, place):
                yield entry
        for audio in sorted(transcript.parent.glob("*.flac")):
            if audio.stem not in named:
                problems.report(f"{audio}: has no line in {transcript.name}; add one or remove the file")


def _librispeech_entry(transcript: Path, name: str, text: str, options: ReaderOptions) -> Entry:
    chapter = transcript.parent
    speaker_folder = chapter.parent
    return {
        "id": name,
        "audio": str(chapter / f"{name}.flac"),
        "text": text,
        "lang": options.lang or "en",
        "speaker": speaker_folder.name,
        "chapter": chapter.name,
        "split": speaker_folder.parent.name,
    }


def read_pattern(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """Files whose names say all, such as `{text}_{speaker}_{index}.wav`; `{text}` is needed, other fields are free.

    The pattern may hold folders (`{speaker}/{text}-{index}.flac`). Files of another extension are passed over.
    """
    if not options.pattern:
        raise UserError("--pattern: reader pattern needs one, e.g. '{text}_{speaker}_{index}.wav'")
    pattern = compile_pattern(options.pattern)
    suffix = Path(options.pattern).suffix.lower()
    folder = _folder(options.source)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    audio_files = [path for path in files if path.suffix.lower() == suffix]
    if len(files) > len(audio_files):
        say(f"{folder}: {len(files) - len(audio_files)} files are not {suffix} and were passed over")
    for path in audio_files:
        name = path.relative_to(folder).as_posix()
        match = pattern.fullmatch(name)
        if match is None:
            problems.report(f"{path}: does not match the pattern {options.pattern}; rename it or move it away")
            continue
        entry = {"id": name.removesuffix(path.suffix), "audio": str(path), **match.groupdict()}
        if options.lang:
            entry["lang"] = options.lang
        if _add_duration(entry, problems, str(path)):
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
    """A JSONL file of one's own with `audio` (relative to the file, or absolute) and `text`; other fields are kept."""
    folder = options.source.parent
    for place, entry in read_manifest(options.source, problems):
        audio = entry["audio"]
        entry["audio"] = str(folder / audio) if isinstance(audio, str) else [str(folder / part) for part in audio]
        entry["text"] = entry["text"].strip()
        if options.lang:
            entry.setdefault("lang", options.lang)
        if _add_duration(entry, problems, place):
            yield entry


def _add_duration(entry: Entry, problems: Problems, place: str) -> bool:
    """Open the entry's audio and note its seconds; False, reported, where it is bad."""
    audio = entry["audio"]
    try:
        seconds = [audio_seconds(path) for path in ([audio] if isinstance(audio, str) else audio)]
    except UserError as error:
        problems.report(error if place in str(error) else f"{place}: {error}")
        return False
    whole = sum(seconds) + sum(entry.get("gaps") or [])
    offset = entry.get("offset")
    if offset is None:
        entry["duration"] = round(whole, 6)
        return True
    entry.setdefault("duration", round(whole - offset, 6))
    if entry["duration"] <= 0 or offset + entry["duration"] > whole + 0.01:
        problems.report(
            f"{place}: the piece at offset {offset} s of {entry['duration']} s does not lie within {audio} "
            f"of {whole:.3f} s; correct the line"
        )
        return False
    return True


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise UserError(f"{source}: is no folder; correct --source")
    return source


READERS: dict[str, Callable[[ReaderOptions, Problems], Iterator[Entry]]] = {
    "jsonl": read_jsonl,
    "librispeech": read_librispeech,
    "pattern": read_pattern,
}
