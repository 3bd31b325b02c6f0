"""Data directories of Kaldi and ESPnet: `wav.scp` and beside it `text`, `segments`, `utt2spk` and others, `KEY VALUE` per line.

The files are sorted alike, as Kaldi asks for, and are read side by side; memory holds only what stands in another order.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import TOLERANCE_SECONDS, add_duration, clip_seconds, lines_of
from data_prep.readers.locating import Locator
from data_prep.readers.pipes import Pipes, recipe_folder
from data_prep.readers.transcripts import no_speech, punctuated
from ttt_dist.manifest.entry import Entry, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

DEPTH = 5  # folders down in which data directories are looked for
FIELDS = {"utt2spk": "speaker", "utt2lang": "lang"}
UNFILTERED = "org"  # where ESPnet keeps a set as it was before it took out what is too short or too long
ARK = re.compile(r"(.+\.ark):(\d+)")
MAX_WIDTH = 8  # bytes of a length that kaldiio writes
TO_THE_END = -1.0  # the end of a segment that goes on to its recording's


def read_kaldi(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A data directory (`data/train`, `dump/raw/train`), or a folder with several, whose names are the splits.

    wav.scp: `ID PATH`, `ID COMMAND |` (run under --allow-pipes) or `ID FILE.ark:OFFSET` (a WAV or FLAC in an archive).
    Relative paths start from the recipe's folder, found above the directory, or from --audio-root. Lengths are those of
    utt2dur or reco2dur where they are there, else of the files.
    """
    yield from read_directories(options, problems, FIELDS, punctuated)


def read_kespeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """KeSpeech: Tasks/ASR/{train_phase1,...}/ as Kaldi has them, whose paths (Audio/...) start from the corpus's folder.

    `<SPOKEN_NOISE>` in texts is dropped; `dialect` is that of utt2subdialect.
    """
    tasks = options.source / "Tasks" / "ASR"
    source = tasks if tasks.is_dir() else options.source
    options = replace(options, source=source, lang=options.lang or "zh")
    fields = {"utt2spk": "speaker", "utt2subdialect": "dialect"}
    yield from read_directories(options, problems, fields, lambda text: text.replace("<SPOKEN_NOISE>", "").strip())


def read_directories(
    options: ReaderOptions, problems: Problems, fields: Mapping[str, str], text_of: Callable[[str], str]
) -> Iterator[Entry]:
    """The entries of all data directories; `fields` says which file of them holds which field of an entry."""
    source = options.source.parent if options.source.name == "wav.scp" else options.source
    folders = _directories(source, problems)
    if not folders:
        raise UserError(f"{source}: has no wav.scp, here or up to {DEPTH} folders down; correct --source")
    for folder in folders:
        if options.wants(folder.name, problems, str(folder)):
            yield from _Directory(folder, options, problems, fields, text_of).entries()


def _directories(source: Path, problems: Problems) -> list[Path]:
    """Folders with a wav.scp; those in it (split8/1, data/) are parts of it or its recordings."""
    found: list[Path] = []
    for root, folders, names in os.walk(source, followlinks=True):
        depth = len(Path(root).relative_to(source).parts)
        if "wav.scp" in names:
            found.append(Path(root))
        if UNFILTERED in folders and root != str(source):
            problems.skip("unfiltered copy of ESPnet's", str(Path(root, UNFILTERED)))
            folders.remove(UNFILTERED)
        if "wav.scp" in names or depth == DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


class Column:
    """One file of `KEY VALUE` lines, asked for its keys in about its own order."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self._lines = lines_of(path, problems) if path.is_file() else iter(())
        self._waiting: dict[str, tuple[str, str]] = {}  # (place, value) of lines that were not asked for yet

    def take(self, key: str) -> tuple[str, str] | None:
        """The line's place and value; None where there is no such line."""
        if found := self._waiting.pop(key, None):
            return found
        for place, line in self._lines:
            name, value = key_and_value(line)
            if name == key:
                return place, value
            self._waiting[name] = place, value
        return None

    def rest(self) -> Iterator[tuple[str, str]]:
        """(place, key) of all lines that nobody asked for."""
        yield from ((place, name) for name, (place, _) in self._waiting.items())
        yield from ((place, key_and_value(line)[0]) for place, line in self._lines)


def key_and_value(line: str) -> tuple[str, str]:
    """`KEY VALUE ...`; the value may be empty."""
    name, *rest = line.split(maxsplit=1)
    return name, rest[0] if rest else ""


@dataclass
class _Recording:
    """A line of wav.scp, opened when it is first asked for."""

    place: str
    value: str
    clip: Entry | None = field(default=None)
    seconds: float | None = None
    is_bad: bool = False


class _Directory:
    def __init__(
        self,
        folder: Path,
        options: ReaderOptions,
        problems: Problems,
        fields: Mapping[str, str],
        text_of: Callable[[str], str],
    ) -> None:
        self._folder, self._options, self._problems, self._text_of = folder, options, problems, text_of
        self._locator = Locator(folder, options.audio_root)
        self._pipes = Pipes(recipe_folder(folder, options.audio_root), options.pipes)
        self._texts = Column(folder / "text", problems)
        self._fields = {name: Column(folder / file, problems) for file, name in fields.items()}
        self._lengths = Column(folder / "utt2dur", problems), Column(folder / "reco2dur", problems)

    def entries(self) -> Iterator[Entry]:
        """All utterances of the directory, in the order of its segments, or without those of wav.scp."""
        if not (self._folder / "text").is_file():
            self._problems.report(f"{self._folder}: has no text; add it, or name another --source", "no transcript")
            return
        by_segment = (self._folder / "segments").is_file()
        yield from self._by_segment() if by_segment else self._by_recording()
        driver = "segments" if by_segment else "wav.scp"
        for place, name in self._texts.rest():
            message = f"{place}: utterance {name} has no line in {driver}; add one or remove it"
            self._problems.report(message, "no recording")

    def _by_recording(self) -> Iterator[Entry]:
        for place, line in lines_of(self._folder / "wav.scp", self._problems):
            name, value = key_and_value(line)
            words = self._words(name, place)
            clip = self._clip(value, place) if words is not None else None
            if words is None or clip is None:
                continue
            entry = {"id": name, **clip, **words}
            seconds = self._stated(name)
            if seconds:
                entry["duration"] = seconds
            if seconds or add_duration(entry, self._problems, place):
                yield entry

    def _by_segment(self) -> Iterator[Entry]:
        recordings: dict[str, _Recording] = {}
        for place, line in lines_of(self._folder / "wav.scp", self._problems):
            name, value = key_and_value(line)
            recordings[name] = _Recording(place, value)
        for place, line in lines_of(self._folder / "segments", self._problems):
            parts = line.split()
            begin, end = (_number(part) for part in parts[2:4]) if len(parts) in (4, 5) else (None, None)
            if begin is None or begin < 0 or end is None or not (begin < end or end == TO_THE_END):
                self._problems.report(f"{place}: is not UTTERANCE RECORDING BEGIN END; correct the line")
                continue
            name, of = parts[:2]
            words = self._words(name, place)
            clip = self._piece(of, recordings.get(of), begin, end, place) if words is not None else None
            if words is not None and clip is not None:
                yield {"id": name, **clip, **words, "chapter": of}

    def _words(self, name: str, place: str) -> Entry | None:
        """What the other files say of an utterance; None, reported or skipped, where it has no words."""
        found = self._texts.take(name)
        values = {field: line[1] for field, column in self._fields.items() if (line := column.take(name)) and line[1]}
        text = self._text_of(found[1]) if found else ""
        if tag := no_speech(text):
            self._problems.skip(f"no speech: {tag}", place)
            return None
        if not text:
            what = "has no text" if found else "has no line in text"
            self._problems.report(f"{place}: utterance {name} {what}; complete or remove it", "no text")
            return None
        if self._options.lang:
            values["lang"] = self._options.lang
        return {"text": text, **values, "split": self._folder.name}

    def _clip(self, value: str, place: str) -> Entry | None:
        """The recording that the right side of a line of wav.scp names; None, reported, where there is none."""
        if value.endswith("|"):
            path = self._pipes.output(value[:-1].strip(), self._problems, place)
            return {"audio": path} if path else None
        ark = ARK.fullmatch(value)
        path = self._locator.find(ark[1] if ark else value, self._problems, place) if value else None
        if not value:
            self._problems.report(f"{place}: names no recording; complete or remove the line", "no recording")
        if path is None or ark is None:
            return {"audio": path} if path else None
        try:
            return {"audio": path, "member": ark_member(path, int(ark[2]))}
        except UserError as error:
            self._problems.report(f"{place}: {error}", "bad ark")
            return None

    def _stated(self, name: str) -> float | None:
        """The length that utt2dur, or reco2dur, states; both are read on, so that they stay in step."""
        lengths = [seconds_of(line[1]) for column in self._lengths if (line := column.take(name))]
        return next((seconds for seconds in lengths if seconds), None)

    def _piece(self, of: str, recording: _Recording | None, begin: float, end: float, place: str) -> Entry | None:
        """A segment of a recording; None, reported, where it does not lie within it."""
        if recording is None:
            self._problems.report(f"{place}: recording {of} has no line in wav.scp; add one", "no recording")
            return None
        whole = self._opened(of, recording)
        if whole is None:
            self._problems.report(
                f"{place}: its recording {of} is bad or missing; see the line of wav.scp", "bad audio"
            )
            return None
        clip, seconds = whole
        end = seconds if end == TO_THE_END else end
        if end > seconds + TOLERANCE_SECONDS or end <= begin:
            message = (
                f"{place}: {begin} to {end} s does not lie within recording {of} of {seconds:.3f} s; correct the line"
            )
            self._problems.report(message, "bad segment")
            return None
        return {**clip, "offset": begin, "duration": round(min(end, seconds) - begin, 6)}

    def _opened(self, of: str, recording: _Recording) -> tuple[Entry, float] | None:
        if recording.seconds is None and not recording.is_bad:
            clip = self._clip(recording.value, recording.place)
            try:
                recording.seconds = (self._stated(of) or clip_seconds(clip, recording.place)) if clip else None
            except (OSError, ValueError) as error:
                self._problems.report(f"{recording.place}: {error}", "bad audio")
            recording.clip, recording.is_bad = clip, recording.seconds is None
        if recording.clip is None or recording.seconds is None:
            return None
        return recording.clip, recording.seconds


def _number(text: str) -> float | None:
    return TO_THE_END if text in ("-1", "-1.0") else seconds_of(text)


def ark_member(path: str, offset: int) -> dict[str, int]:
    """Where in an archive the audio file lies whose entry begins at `offset`: a WAV, or what kaldiio writes for others
    (`AUDIO`, the size of the length, the length). Raises UserError where there is something else."""
    with open(path, "rb") as file:
        file.seek(offset)
        head = file.read(16)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        size = struct.unpack("<I", head[4:8])[0] + 8
    elif head[:5] == b"AUDIO" and (width := head[5]) <= MAX_WIDTH:
        size = int.from_bytes(head[6 : 6 + width], "little")
        offset += 6 + width
    else:
        kind = "a matrix of features" if head[:2] == b"\0B" else "no WAV and no AUDIO of kaldiio's"
        raise UserError(f"{path}:{offset}: holds {kind}; name the wav.scp of the recordings")
    if offset + size > os.path.getsize(path):
        raise UserError(f"{path}:{offset}: is cut off, or its header states no length; write the archive again")
    return {"offset": offset, "size": size}
