"""Encoding with codecs of their published size and random weights: hours of audio per hour, recordings per second."""

import time
from collections.abc import Iterator
from functools import partial

from benchmarks.codec_speed import speech_like, write_codec
from benchmarks.gpu.setting import Figures, Measurement, Setting
from ttt_dist.audio import load_codec

SECONDS = 1200.0


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Codecs that a GPU is bought for; on CPU the one that is small."""
    for name in ("mimi", "glm4voice") if setting.on_cuda else ("melvq",):
        yield name, partial(encode, setting, name)


def encode(setting: Setting, name: str) -> Figures:
    """Recordings of 2 to 15 s, all given at once; the first few warm up."""
    folder = setting.work / name
    write_codec(name, folder)
    codec = load_codec(f"{name}:{folder}", device=setting.device)
    waves = speech_like(SECONDS if setting.on_cuda else 20.0, codec.sample_rate)
    codec.encode(waves[:8])
    setting.wait()
    begin = time.perf_counter()
    codec.encode(waves)
    setting.wait()
    seconds = time.perf_counter() - begin
    audio_s = sum(map(len, waves)) / codec.sample_rate
    return {"hours_per_hour": audio_s / seconds, "recordings_s": len(waves) / seconds, "audio_s": audio_s}
