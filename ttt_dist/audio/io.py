"""Reading and writing audio files; clips as a manifest line describes them.

soundfile reads (WAV, FLAC, OGG with Vorbis or Opus, MP3), and PyAV what it does not know, where that is installed.
torchaudio.load is not used: it asks for TorchCodec and the FFmpeg libraries. All waveforms are mono float32 tensors [T] in
-1..1.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import soundfile

from ttt_dist.audio import ffmpeg
from ttt_dist.audio.containers import Containers
from ttt_dist.audio.headers import put_right
from ttt_dist.audio.levels import Levels
from ttt_dist.audio.sources import Source, as_file, head_of, require_regular
from ttt_dist.util.errors import UserError

# A manifest wants lengths alone: torch, seconds of CPU and half a gigabyte, is imported where sound is read.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Source",
    "UtteranceReader",
    "audio_seconds",
    "load_utterance",
    "num_channels",
    "read_audio",
    "write_wav",
]

CACHE_BYTES = 256 * 2**20  # of decoded, resampled files that an UtteranceReader keeps
BLOCK_FRAMES = 2**20  # read at once, of one channel, whatever length the header claims
UNKNOWN_FRAMES = 2**62  # libsndfile gives such a number where the header names no length
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
MOST_SAMPLES = 2**29  # frames x channels decoded for one clip: 3 hours of 48 kHz, or 2 GB
MOST_A_SECOND = 192_000  # of these where the seconds are bounded: two channels of 96 kHz

Recording: TypeAlias = "soundfile.SoundFile | ffmpeg.FfmpegFile"


def read_audio(
    source: Source,
    sample_rate: int,
    offset: float = 0.0,
    duration: float | None = None,
    name: str | None = None,
    notes: list[str] | None = None,
    most_seconds: float | None = None,
    channel: int | None = None,
) -> Tensor:
    """A file, or the piece of it from `offset` for `duration` seconds, as mono float32 [T] at `sample_rate`.

    Of several channels that one, from 0, or without `channel` their mean.
    Seeks where the file allows it: of a long one only the piece is decoded. Messages call it `name` (by default its path).
    What its levels tell (ttt_dist/audio/levels.py) is appended to `notes`.
    Raises UserError naming the file where it is missing, no audio, empty, cut off, ends before the piece does, has no such channel, or more
    than `most_seconds`, beyond which nothing is decoded: a small compressed file may hold days.
    """
    levels = Levels()
    with _opened(source, name, is_whole=not offset and duration is None) as (file, name):
        if channel is not None and channel >= file.channels:
            raise UserError(f"{name}: has {file.channels} channel(s), and no number {channel}; correct the manifest")
        rate, frames = file.samplerate, _stated_length(file, name)
        start, count = round(offset * rate), None if duration is None else round(duration * rate)
        if frames is not None:
            _require_piece(frames, rate, offset, duration, name)
            count = frames - start if count is None else min(count, frames - start)
        limit = MOST_SAMPLES * rate // max(rate, sample_rate)
        if most_seconds is not None:
            limit = int(most_seconds * min(rate * file.channels, MOST_A_SECOND))
            if count is not None and count * file.channels > limit:
                raise _too_long(file, limit, name)
        skipped = _skip(file, start)
        import torch

        wave = torch.from_numpy(_read_mono(file, count, limit, name, levels, channel))
        if frames is None:
            _require_piece(skipped + len(wave), rate, offset, duration, name)
        elif count is not None:
            _require_all(file, len(wave), count, name)
    low, high = (float(bound) for bound in wave.aminmax())  # of which a NaN among the samples makes NaN
    if not math.isfinite(high - low):
        raise UserError(f"{name}: holds samples that are not finite; record or convert it again")
    if notes is not None:
        notes += levels.notes(low, high)
    from ttt_dist.audio.resampling import resample

    return resample(wave, rate, sample_rate)


def audio_seconds(source: Source, name: str | None = None) -> float:
    """A file's length: from its header, or by decoding where that leaves it open. Raises UserError as `read_audio` does."""
    with _opened(source, name) as (file, name):
        frames = _stated_length(file, name)
        if frames is None and not (frames := _skip(file, UNKNOWN_FRAMES)):
            raise _empty(name)
        return float(frames / file.samplerate)


def num_channels(source: Source, name: str | None = None) -> int:
    """How many channels a file has, by its header. Raises UserError as `read_audio` does."""
    with _opened(source, name) as (file, _):
        return int(file.channels)


@contextmanager
def _opened(source: Source, name: str | None, is_whole: bool = False) -> Iterator[tuple[Recording, str]]:
    """The open file and its name; what libsndfile and the system refuse becomes a UserError."""
    name = name or ("audio in memory" if isinstance(source, bytes) else str(source))
    try:
        if not isinstance(source, bytes):
            require_regular(source, name)
        source = put_right(source, name, is_whole)
        with as_file(source) as place, _decoder(source, place, name) as file:
            if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
                raise UserError(
                    f"{name}: has {file.samplerate:,} samples a second, by its header; {LOWEST_RATE:,} to {HIGHEST_RATE:,} "
                    "are read: correct the header, or convert it to WAV or FLAC"
                )
            yield file, name
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{name}: {_reason(source, error)}") from error


def _decoder(source: Source, place: str | int, name: str) -> Recording:
    """libsndfile, or FFmpeg for what only that knows."""
    try:
        file = soundfile.SoundFile(place) if isinstance(place, str) else soundfile.SoundFile(place, closefd=False)
    except TypeError:  # soundfile goes by the name here
        raise UserError(
            f"{name}: its name says raw samples, whose rate nothing tells; convert it to WAV or FLAC"
        ) from None
    except soundfile.SoundFileError as error:
        if (found := ffmpeg.known(head_of(source, 16))) is None:
            raise
        if not ffmpeg.is_installed():
            raise UserError(
                f"{name}: cannot be read as audio ({found[1]}, for which the package av is missing); convert it to WAV or "
                "FLAC, or install that package (pip install av)"
            ) from error
        return ffmpeg.FfmpegFile(source, found[0], name)
    if file.frames >= UNKNOWN_FRAMES:  # then libsndfile fails to seek, and soundfile seeks after every read
        file.seekable = lambda: False
    return file


def _stated_length(file: Recording, name: str) -> int | None:
    """Frames by the header; None where that leaves it open. Raises UserError where there are none, or too many at once."""
    if file.frames == 0:
        raise _empty(name)
    return None if file.frames >= UNKNOWN_FRAMES else int(file.frames)


def _empty(name: str) -> UserError:
    return UserError(f"{name}: holds no audio (zero length); remove it or record it again")


def _require_piece(frames: int, rate: int, offset: float, duration: float | None, name: str) -> None:
    """Raise UserError where a recording of `frames` does not hold the piece."""
    start = round(offset * rate)
    count = frames - start if duration is None else round(duration * rate)
    if start < 0 or count <= 0 or start + count > frames + rate // 100:
        raise UserError(
            f"{name}: has {frames / rate:.3f} s, but the piece asked for is offset {offset:.3f} s, duration "
            f"{'to the end' if duration is None else f'{duration:.3f} s'}; correct the manifest"
        )


def _require_all(file: Recording, number: int, count: int, name: str) -> None:
    """Raise UserError where fewer frames were read than the header says; of an MP3 two of its own may be missing."""
    rate = file.samplerate
    if number == 0 or count - number > (2 * 1152 if file.format == "MP3" else rate // 100):
        raise UserError(
            f"{name}: is cut off or damaged: {number / rate:.3f} s of {count / rate:.3f} s could be decoded; fetch it again"
        )


def _skip(file: Recording, frames: int) -> int:
    """Go to `frames` from the start, by reading where the file cannot seek; the number that there were to skip."""
    if frames <= 0:
        return 0
    if isinstance(file, soundfile.SoundFile) and file.seekable():
        return int(file.seek(frames))
    left, most = frames, max(1, BLOCK_FRAMES // file.channels)
    while left and (got := len(file.read(min(left, most), dtype="float32", always_2d=True))):
        left -= got
    return frames - left


def _read_mono(
    file: Recording, count: int | None, limit: int, name: str, levels: Levels, channel: int | None
) -> np.ndarray:
    """[count] of a channel, or of the channels' mean, fewer where the file ends, in blocks: a damaged header may claim more than memory
    holds.

    Raises UserError where they are more than `limit` over all channels.
    """
    blocks: list[np.ndarray] = []
    left = UNKNOWN_FRAMES if count is None else count
    while left > 0:
        data = file.read(min(left, max(1, BLOCK_FRAMES // file.channels)), dtype="float32", always_2d=True)
        if not len(data):
            break
        if data.shape[1] == 1 or channel is not None:
            blocks.append(data[:, channel or 0].copy())  # a view would keep all channels
        else:
            import torch

            blocks.append(torch.from_numpy(data).mean(dim=1).numpy())
            levels.add(data, blocks[-1])
        left -= len(data)
        if file.channels * sum(map(len, blocks)) > limit:
            raise _too_long(file, limit, name)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _too_long(file: Recording, limit: int, name: str) -> UserError:
    seconds = limit / file.channels / file.samplerate
    return UserError(
        f"{name}: is longer than {seconds:,.0f} s, too much to be read at once ({file.channels} channels at "
        f"{file.samplerate:,} Hz); give a piece of it, in a manifest by offset and duration"
    )


def write_wav(path: str | Path, wave: Tensor, sample_rate: int) -> None:
    """Write [T] in -1..1 (clipped) as 16-bit mono WAV."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.detach().clamp(-1, 1).cpu().numpy(), sample_rate, subtype="PCM_16", format="WAV")


def _reason(source: Source, error: Exception) -> str:
    cause = f"cannot be read as audio ({str(error).rsplit(': ', 1)[-1].strip().rstrip('.')}); convert it to WAV or FLAC"
    if isinstance(source, bytes):
        return cause
    # os.path has an answer for every name; Path raises where the system finds one too long.
    if isinstance(error, PermissionError) or (os.path.isfile(source) and not os.access(source, os.R_OK)):
        return "may not be read; change its permissions"
    if not os.path.exists(source):
        return "no such file; correct the path or its root"
    if os.path.isfile(source) and os.path.getsize(source) == 0:
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
        self._cache: OrderedDict[str, tuple[Tensor, list[str]]] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()  # of the cache

    def read(self, entry: Mapping[str, Any], notes: list[str] | None = None) -> Tensor:
        """The waveform [T] of a clip (ttt_dist/manifest/clips.py): one file, a piece of it, or a list of files joined.

        Where the clip has an `offset`, the piece from there for `duration` seconds (without one: to the end) is read;
        without an `offset` the whole file, its `duration` being for information. With a `member` the file is that
        part of the container that `audio` names; with a `channel` that one is read, else the mean of all. In a list,
        `gaps[i]` seconds of silence stand before part i, and `tail` seconds after the last. What the levels of its
        recordings tell is appended to `notes`. Raises UserError naming the file.
        """
        notes = [] if notes is None else notes
        audio, channel = entry["audio"], entry.get("channel")
        if isinstance(audio, str):
            member = entry.get("member")
            if entry.get("offset") is None:
                return self._whole(audio, member, channel, notes)
            source, name = self._source(audio, member)
            duration = entry.get("duration")
            length = None if duration is None else float(duration)
            return read_audio(source, self.sample_rate, float(entry["offset"]), length, name, notes, channel=channel)
        import torch

        gaps = entry.get("gaps") or [0.0] * len(audio)
        parts: list[Tensor] = []
        for name, gap in zip(audio, gaps, strict=True):
            parts += [torch.zeros(round(gap * self.sample_rate)), self._whole(name, None, channel, notes)]
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

    def _whole(self, audio: str, member: Mapping[str, Any] | None, channel: int | None, notes: list[str]) -> Tensor:
        is_plain = member is None and channel is None
        key = audio if is_plain else json.dumps([audio, member, channel], sort_keys=True)
        with self._lock:
            kept = self._cache.get(key)
            if kept is not None:
                self._cache.move_to_end(key)
        if kept is None:
            source, name = self._source(audio, member)
            told: list[str] = []
            kept = read_audio(source, self.sample_rate, name=name, notes=told, channel=channel), told
            with self._lock:
                self._keep(key, kept)
        notes += kept[1]
        return kept[0]

    def _keep(self, key: str, recording: tuple[Tensor, list[str]]) -> None:
        if key in self._cache:  # another thread was faster
            return
        self._cache[key] = recording
        self._cached_bytes += recording[0].nbytes
        while self._cached_bytes > self.cache_bytes:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


def load_utterance(entry: Mapping[str, Any], root: str | Path, sample_rate: int, allow_outside: bool = False) -> Tensor:
    """The waveform [T] of one manifest line; for many lines keep an `UtteranceReader`."""
    return UtteranceReader(root, sample_rate, allow_outside, cache_bytes=0).read(entry)
