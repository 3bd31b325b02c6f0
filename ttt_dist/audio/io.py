"""Reading, resampling and writing audio files; clips as a manifest line describes them.

soundfile reads (WAV, FLAC, OGG with Vorbis or Opus, MP3), torchaudio resamples. torchaudio.load is not used: it asks
for TorchCodec and the FFmpeg libraries. All waveforms are mono float32 tensors [T] in -1..1.
"""

from __future__ import annotations

import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torchaudio import functional

from ttt_dist.audio.containers import Containers
from ttt_dist.util.errors import UserError

CACHE_BYTES = 256 * 2**20  # of decoded, resampled files that an UtteranceReader keeps
BLOCK_FRAMES = 2**20  # read at once, whatever length the header claims
UNKNOWN_FRAMES = 2**62  # libsndfile gives such a number where the header names no length

Source = str | Path | bytes
"""An audio file: its path, or its bytes where it is a member of a container."""


def read_audio(
    source: Source, sample_rate: int, offset: float = 0.0, duration: float | None = None, name: str | None = None
) -> Tensor:
    """A file, or the piece of it from `offset` for `duration` seconds, as mono float32 [T] at `sample_rate`.

    Seeks: of a long file only the piece is decoded. Messages call it `name` (by default its path). Raises UserError
    naming the file where it is missing, no audio, empty, cut off, or ends before the piece does.
    """
    with _opened(source, name) as (file, name):
        rate, frames = file.samplerate, _length(file, name)
        start = round(offset * rate)
        count = frames - start if duration is None else round(duration * rate)
        if start < 0 or count <= 0 or start + count > frames + rate // 100:
            raise UserError(
                f"{name}: has {frames / rate:.3f} s, but the piece asked for is offset {offset:.3f} s, duration "
                f"{'to the end' if duration is None else f'{duration:.3f} s'}; correct the manifest"
            )
        file.seek(start)
        data = _read_frames(file, min(count, frames - start), name)
    wave = torch.from_numpy(data).mean(dim=1)
    if not torch.isfinite(wave).all():
        raise UserError(f"{name}: holds samples that are not finite; record or convert it again")
    return resample(wave, rate, sample_rate)


def audio_seconds(source: Source, name: str | None = None) -> float:
    """A file's length from its header. Raises UserError as `read_audio` does."""
    with _opened(source, name) as (file, name):
        return float(_length(file, name) / file.samplerate)


@contextmanager
def _opened(source: Source, name: str | None) -> Iterator[tuple[soundfile.SoundFile, str]]:
    """The open file and its name; what libsndfile and the system refuse becomes a UserError."""
    name = name or ("audio in memory" if isinstance(source, bytes) else str(source))
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file, name
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{name}: {_reason(source, error)}") from error


def _length(file: soundfile.SoundFile, name: str) -> int:
    if file.frames == 0:
        raise UserError(f"{name}: holds no audio (zero length); remove it or record it again")
    if file.frames >= UNKNOWN_FRAMES:
        raise UserError(f"{name}: its header does not say how long it is; convert it to WAV or FLAC")
    return int(file.frames)


def _read_frames(file: soundfile.SoundFile, count: int, name: str) -> np.ndarray:
    """[count, channels], in blocks: a damaged header may claim more than memory holds.

    Of an MP3 a tenth may be missing: without a table of its frames the length is an estimate.
    """
    tolerance = count // 10 if file.format == "MP3" else file.samplerate // 100
    blocks: list[np.ndarray] = []
    left = count
    while left > 0:
        blocks.append(file.read(min(left, BLOCK_FRAMES), dtype="float32", always_2d=True))
        if not len(blocks[-1]):
            break
        left -= len(blocks[-1])
    if left == count or left > tolerance:
        rate = file.samplerate
        raise UserError(
            f"{name}: is cut off or damaged: {(count - left) / rate:.3f} s of {count / rate:.3f} s could be decoded; "
            "fetch it again"
        )
    return np.concatenate(blocks)


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[T] at `from_rate` Hz to [T'] at `to_rate` Hz (windowed sinc, torchaudio)."""
    return wave if from_rate == to_rate else functional.resample(wave, from_rate, to_rate)


def write_wav(path: str | Path, wave: Tensor, sample_rate: int) -> None:
    """Write [T] in -1..1 (clipped) as 16-bit mono WAV."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.detach().clamp(-1, 1).cpu().numpy(), sample_rate, subtype="PCM_16", format="WAV")


def _reason(source: Source, error: Exception) -> str:
    cause = f"cannot be read as audio ({str(error).rsplit(': ', 1)[-1].strip().rstrip('.')}); convert it to WAV or FLAC"
    if isinstance(source, bytes):
        return cause
    path = Path(source)
    if isinstance(error, PermissionError) or (path.is_file() and not os.access(path, os.R_OK)):
        return "may not be read; change its permissions"
    if not path.exists():
        return "no such file; correct the path or its root"
    if path.is_file() and path.stat().st_size == 0:
        return "is an empty file; remove it or record it again"
    return cause


class UtteranceReader:
    """Reads manifest lines' audio at one sample rate, keeping recently decoded files; several threads may read at once.

    Utterances joined from single recordings use each recording many times: the cache (least recently used goes first)
    makes the second time free. Relative paths start from `root` (the manifest's folder). A path outside `audio_root`
    (by default `root`) is refused, so that a manifest from elsewhere cannot read any file of this machine, unless
    `allow_outside`.
    """

    def __init__(
        self,
        root: str | Path,
        sample_rate: int,
        allow_outside: bool = False,
        audio_root: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.root = Path(root)
        self.sample_rate = sample_rate
        self.allow_outside = allow_outside
        self.audio_root = self.root if audio_root is None else Path(audio_root)
        self.cache_bytes = cache_bytes
        self._resolved_root = self.audio_root.resolve()
        self._containers = Containers()
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()  # of the cache

    def read(self, entry: Mapping[str, Any]) -> Tensor:
        """The waveform [T] of a clip (ttt_dist/manifest/clips.py): one file, a piece of it, or a list of files joined.

        Where the clip has an `offset`, the piece from there for `duration` seconds (without one: to the end) is read;
        without an `offset` the whole file, its `duration` being for information. With a `member` the file is that
        part of the container that `audio` names. In a list, `gaps[i]` seconds of silence stand before part i, and
        `tail` seconds after the last. Raises UserError naming the file.
        """
        audio = entry["audio"]
        if isinstance(audio, str):
            member = entry.get("member")
            if entry.get("offset") is None:
                return self._whole(audio, member)
            source, name = self._source(audio, member)
            duration = entry.get("duration")
            length = None if duration is None else float(duration)
            return read_audio(source, self.sample_rate, float(entry["offset"]), length, name)
        gaps = entry.get("gaps") or [0.0] * len(audio)
        parts: list[Tensor] = []
        for name, gap in zip(audio, gaps, strict=True):
            parts += [torch.zeros(round(gap * self.sample_rate)), self._whole(name, None)]
        return torch.cat([*parts, torch.zeros(round(entry.get("tail", 0.0) * self.sample_rate))])

    def path(self, name: str) -> Path:
        """Where a manifest's path points to; UserError where that is outside the allowed folder."""
        return self._allowed(self.root / name, name)

    def _allowed(self, path: Path, name: str) -> Path:
        if not self.allow_outside and not path.resolve().is_relative_to(self._resolved_root):
            raise UserError(f"{name}: lies outside {self.audio_root}; move it there or name its folder by --audio-root")
        return path

    def _source(self, audio: str, member: Mapping[str, Any] | None) -> tuple[Source, str]:
        """The file or bytes to decode, and their name. A path that a container's row names is checked like any other."""
        path = self.path(audio)
        if member is None:
            return path, str(path)
        found, name = self._containers.named(path, member)
        return (found if isinstance(found, bytes) else self._allowed(found, name)), name

    def _whole(self, audio: str, member: Mapping[str, Any] | None) -> Tensor:
        key = audio if member is None else json.dumps([audio, member], sort_keys=True)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        source, name = self._source(audio, member)
        wave = read_audio(source, self.sample_rate, name=name)
        with self._lock:
            self._keep(key, wave)
        return wave

    def _keep(self, key: str, wave: Tensor) -> None:
        if key in self._cache:  # another thread was faster
            return
        self._cache[key] = wave
        self._cached_bytes += wave.nbytes
        while self._cached_bytes > self.cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


def load_utterance(entry: Mapping[str, Any], root: str | Path, sample_rate: int, allow_outside: bool = False) -> Tensor:
    """The waveform [T] of one manifest line; for many lines keep an `UtteranceReader`."""
    return UtteranceReader(root, sample_rate, allow_outside, cache_bytes=0).read(entry)
