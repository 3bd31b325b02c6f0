"""Reading, resampling and writing audio files; utterances as a manifest line describes them.

soundfile reads (WAV, FLAC, OGG, MP3), torchaudio resamples. torchaudio.load is not used: it asks for TorchCodec and
the FFmpeg libraries. All waveforms are mono float32 tensors [T] in -1..1.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from torchaudio import functional

from ttt_dist.errors import UserError

CACHE_BYTES = 256 * 2**20  # of decoded, resampled files that an UtteranceReader keeps


def read_audio(path: str | Path, sample_rate: int, offset: float = 0.0, duration: float | None = None) -> Tensor:
    """A file, or the piece of it from `offset` for `duration` seconds, as mono float32 [T] at `sample_rate`.

    Seeks: of a long file only the piece is decoded. Raises UserError naming the file where it is missing, no audio,
    empty, or ends before the piece does.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            start = round(offset * rate)
            count = frames - start if duration is None else round(duration * rate)
            if frames == 0:
                raise UserError(f"{path}: holds no audio (zero length); remove it or record it again")
            if start < 0 or count <= 0 or start + count > frames + rate // 100:
                raise UserError(
                    f"{path}: has {frames / rate:.3f} s, but the piece asked for is offset {offset:.3f} s, duration "
                    f"{'to the end' if duration is None else f'{duration:.3f} s'}; correct the manifest"
                )
            file.seek(start)
            data = file.read(min(count, frames - start), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: {_reason(Path(path), error)}") from error
    wave = torch.from_numpy(data).mean(dim=1)
    if not torch.isfinite(wave).all():
        raise UserError(f"{path}: holds samples that are not finite; record or convert it again")
    return resample(wave, rate, sample_rate)


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[T] at `from_rate` Hz to [T'] at `to_rate` Hz (windowed sinc, torchaudio)."""
    return wave if from_rate == to_rate else functional.resample(wave, from_rate, to_rate)


def write_wav(path: str | Path, wave: Tensor, sample_rate: int) -> None:
    """Write [T] in -1..1 (clipped) as 16-bit mono WAV."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.detach().clamp(-1, 1).cpu().numpy(), sample_rate, subtype="PCM_16", format="WAV")


def audio_seconds(path: str | Path) -> float:
    """A file's length from its header. Raises UserError as `read_audio` does."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: {_reason(Path(path), error)}") from error
    if info.frames == 0:
        raise UserError(f"{path}: holds no audio (zero length); remove it or record it again")
    return float(info.frames / info.samplerate)


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "no such file; correct the path or its root"
    if path.is_file() and not os.access(path, os.R_OK):
        return "may not be read; change its permissions"
    if path.is_file() and path.stat().st_size == 0:
        return "is an empty file; remove it or record it again"
    return f"cannot be read as audio ({str(error).rsplit(': ', 1)[-1].strip().rstrip('.')}); convert it to WAV or FLAC"


class UtteranceReader:
    """Reads manifest lines' audio at one sample rate, keeping recently decoded files.

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
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cached_bytes = 0

    def read(self, entry: Mapping[str, Any]) -> Tensor:
        """The waveform [T] of a manifest line: one file, a piece of it, or a list of files joined.

        Where the line has an `offset`, the piece from there for `duration` seconds (without one: to the end) is read;
        without an `offset` the whole file, its `duration` being for information. In a list, `gaps[i]` seconds of
        silence stand before part i, and `tail` seconds after the last. Raises UserError naming the file.
        """
        audio = entry["audio"]
        if isinstance(audio, str):
            if entry.get("offset") is None:
                return self._whole(audio)
            duration = entry.get("duration")
            length = None if duration is None else float(duration)
            return read_audio(self.path(audio), self.sample_rate, float(entry["offset"]), length)
        gaps = entry.get("gaps") or [0.0] * len(audio)
        parts: list[Tensor] = []
        for name, gap in zip(audio, gaps, strict=True):
            parts += [torch.zeros(round(gap * self.sample_rate)), self._whole(name)]
        return torch.cat([*parts, torch.zeros(round(entry.get("tail", 0.0) * self.sample_rate))])

    def path(self, name: str) -> Path:
        """Where a manifest's path points to; UserError where that is outside the allowed folder."""
        path = self.root / name
        if not self.allow_outside and not path.resolve().is_relative_to(self._resolved_root):
            raise UserError(f"{name}: lies outside {self.audio_root}; move it there or name its folder by --audio-root")
        return path

    def _whole(self, name: str) -> Tensor:
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        wave = read_audio(self.path(name), self.sample_rate)
        self._cache[name] = wave
        self._cached_bytes += wave.nbytes
        while self._cached_bytes > self.cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return wave


def load_utterance(entry: Mapping[str, Any], root: str | Path, sample_rate: int, allow_outside: bool = False) -> Tensor:
    """The waveform [T] of one manifest line; for many lines keep an `UtteranceReader`."""
    return UtteranceReader(root, sample_rate, allow_outside, cache_bytes=0).read(entry)
