#!/usr/bin/env bash
# PyAV (av) 18.1.0 with its FFmpeg (libavcodec 62.28), numpy 2.4.6.
# Expected: one second of sound has one second of samples when it is decoded, in whichever container it lies, as its stated duration says.
# Seen: Opus in WebM or Ogg and MP3 come back to the sample. In MP4 the start is right and the end is not cut: Opus has 648 samples more (of 48,000), AAC 384 (of 16,000), though
#   the stream's duration says 1.0. AAC without a container begins 1,024 samples late (64 ms) and ends 384 late.
# Why it matters: the same utterance has another number of codes from another container, and manifests made of stated durations are not what is decoded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/lengths.py" <<'PY'
import io
import sys
from fractions import Fraction

import av
import numpy as np

RATE = 16000
time = np.arange(RATE) / RATE
tone = (0.5 * np.sin(2 * np.pi * 440 * time) * (time >= 0.5)).astype(np.float32)  # from the middle on


def encoded(codec, container):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48000 if codec == "libopus" else RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=stream.rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            out.mux(stream.encode(piece))
    file.seek(0)
    return file


seen = {}
for codec, container in (("libopus", "webm"), ("libopus", "ogg"), ("libmp3lame", "mp3"), ("libopus", "mp4"), ("aac", "mp4"), ("aac", "adts")):
    with av.open(encoded(codec, container)) as source:
        frames = list(source.decode(audio=0))
    wave = np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype(np.float64)
    rate = frames[0].sample_rate
    onset = int(np.argmax(np.abs(wave) > 0.3 * np.abs(wave).max())) - rate // 2
    seen[codec, container] = len(wave) - rate, onset > rate // 100
    print(f"{codec} in {container}: {len(wave) - rate:+d} samples, the tone begins {onset:+d}")
print(av.__version__)
exact, late = (0, False), (1408, True)
sys.exit(seen != {
    ("libopus", "webm"): exact, ("libopus", "ogg"): exact, ("libmp3lame", "mp3"): exact,
    ("libopus", "mp4"): (648, False), ("aac", "mp4"): (384, False), ("aac", "adts"): late,
})
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
"$work/venv/bin/python" "$work/lengths.py"
