"""Tiny recordings for trees in the layout of real corpora: each sounds at a pitch that follows from its name."""

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data_prep.readers import ReaderOptions, load_reader
from ttt_dist.audio import UtteranceReader
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems

RATE = 8000
SECONDS = 0.3
FORMATS = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".ogg": {"format": "OGG", "subtype": "VORBIS"}}
CHAT = [{"role": "user", "audio": "q.wav"}, {"role": "assistant", "text": "yes", "audio": "a.wav", "offset": 1.0}]
DOCUMENT = [{"text": "one", "offset": 0.0, "duration": 0.5}, {"text": "two", "audio": "b.wav"}]


def read_entries(path: Path) -> list[Entry]:
    """The lines of a manifest."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def hertz(name: str) -> float:
    """The pitch of a name, one of 40."""
    return 300.0 + 30 * (zlib.crc32(name.encode()) % 40)


def tone(name: str, seconds: float = SECONDS) -> np.ndarray:
    """[T]: the sound of a name."""
    return (0.5 * np.sin(2 * np.pi * hertz(name) * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def record(path: Path, seconds: float = SECONDS, name: str | None = None) -> Path:
    """Write the sound of `name` (by default the file's stem) in the format of the file's extension."""
    return write(path, tone(name or path.stem, seconds))


def write(path: Path, wave: np.ndarray) -> Path:
    """Write a wave in the format of the file's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE, **FORMATS.get(path.suffix, {}))
    return path


def encoded(name: str, kind: str = "WAV", seconds: float = SECONDS) -> bytes:
    """The bytes of an audio file that holds the sound of `name`."""
    file = io.BytesIO()
    soundfile.write(file, tone(name, seconds), RATE, format=kind)
    return file.getvalue()


def put(path: Path, *lines: str | bytes) -> Path:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def listed(reader: str, source: Path, **options: Any) -> tuple[list[Entry], Problems]:
    """What a reader makes of a corpus."""
    problems = Problems(told=0)
    return list(load_reader(reader)(ReaderOptions(source=source, **options), problems)), problems


def errors(problems: Problems) -> list[str]:
    """All messages that were reported."""
    return [message for tally in problems.errors.values() for message in tally.places]


def assert_sounds_like(clip: Mapping[str, Any], name: str, root: Path, seconds: float = SECONDS) -> None:
    """The clip can be read, and is the sound of `name` of that length; compressed audio has it but for its edges."""
    wave = UtteranceReader(root, RATE).read(clip).numpy()
    assert abs(len(wave) / RATE - seconds) < 0.12, clip
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * RATE))
    assert abs(np.argmax(spectrum) / 8 - hertz(name)) < 5, f"{clip} is not {name}"
