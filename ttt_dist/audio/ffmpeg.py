"""What libsndfile does not know and telephones and browsers record: m4a, aac, webm, wma, amr.

PyAV reads them where the extra `containers` is installed. The demuxer is chosen by the file's first bytes, never guessed:
FFmpeg's guesses include lists of other files and of addresses.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from ttt_dist.audio.sources import Source
from ttt_dist.util.errors import UserError

DEMUXERS = (  # place and bytes by which a file is known, FFmpeg's name, and what to call it
    (4, b"ftyp", "mov", "MP4"),
    (0, b"\x1aE\xdf\xa3", "matroska", "WebM"),
    (0, b"\xff\xf1", "aac", "AAC"),
    (0, b"\xff\xf9", "aac", "AAC"),
    (0, b"0&\xb2u", "asf", "WMA"),
    (0, b"#!AMR", "amr", "AMR"),
)
UNKNOWN = 2**63 - 1  # frames, as libsndfile says it
NEAR_S = 0.1  # by which a sample table may differ from what is decoded: encoders pad


def known(head: bytes) -> tuple[str, str] | None:
    """(demuxer, what to call it) of a file with these first bytes; None where it is none of them."""
    for place, magic, demuxer, title in DEMUXERS:
        if head[place : place + len(magic)] == magic:
            return demuxer, title
    return None


def is_installed() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class FfmpegFile:
    """As much of `soundfile.SoundFile` as reading from the start to the end takes. Raises UserError where it is damaged."""

    frames = UNKNOWN

    def __init__(self, source: Source, demuxer: str, name: str) -> None:
        import av

        self._name = name
        self._errors = (av.error.FFmpegError, ValueError, IndexError)
        try:
            self._container: Any = av.open(
                io.BytesIO(source) if isinstance(source, bytes) else str(source),
                format=demuxer,
                metadata_errors="replace",
            )
            self._stream: Any = self._container.streams.audio[0]
            self._blocks = self._decoded(av.AudioResampler(format="flt"))
            self._ahead = next(self._blocks, np.zeros((0, 1), np.float32))
        except self._errors as error:
            raise self._damaged(error) from error
        self.format = self.subtype = demuxer.upper()
        self.samplerate = self._stream.codec_context.sample_rate
        self.channels = self._ahead.shape[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def read(self, frames: int, **_: Any) -> np.ndarray:
        """The next [frames, channels], fewer at the end."""
        parts, left = [], frames
        while left and len(self._ahead):
            parts.append(self._ahead[:left])
            self._ahead = self._ahead[left:]
            left -= len(parts[-1])
            if not len(self._ahead):
                self._ahead = next(self._blocks, self._ahead)
        return np.concatenate(parts) if parts else np.zeros((0, self.channels), np.float32)

    def _decoded(self, resampler: Any) -> Iterator[np.ndarray]:
        samples, rate = 0, 1
        try:
            for frame in self._container.decode(self._stream):
                for plain in resampler.resample(frame):
                    block = plain.to_ndarray().reshape(-1, plain.layout.nb_channels)
                    samples, rate = samples + len(block), plain.sample_rate
                    yield block
        except self._errors as error:
            raise self._damaged(error) from error
        stated = self._stream.duration if self._container.format.name.startswith("mov") else None
        seconds = float(stated * self._stream.time_base) if stated else 0.0
        if samples / rate < seconds - NEAR_S:
            raise UserError(
                f"{self._name}: is cut off or damaged: {samples / rate:.3f} s of {seconds:.3f} s could be decoded; "
                "fetch it again"
            )

    def _damaged(self, error: Exception) -> UserError:
        cause = getattr(error, "strerror", None) or str(error) or "no audio"
        return UserError(
            f"{self._name}: cannot be read as audio ({cause}); fetch it again, or convert it to WAV or FLAC"
        )
