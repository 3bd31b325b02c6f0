#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2).
# Expected: a FLAC whose header gives 0 samples, which the format allows for an unknown number (streamed recordings), is read
#   to its end, as `flac -d` does.
# Seen: its length is 2**63 - 1 frames, its duration 5.8e14 s, and `soundfile.read` asks for an array of that size. Blocks of a
#   given size are read as they should be.
# Why it matters: a manifest takes such a duration at its word, and a corpus of streamed recordings is refused.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import sys

import numpy as np
import soundfile

soundfile.write("known.flac", 0.3 * np.sin(np.arange(16000) * 0.05), 16000)
content = bytearray(open("known.flac", "rb").read())
low = int.from_bytes(content[18:26], "big")  # rate, channels, bits; then 36 bits: the number of samples
content[18:26] = (low >> 36 << 36).to_bytes(8, "big")
open("unknown.flac", "wb").write(content)

frames = soundfile.info("unknown.flac").frames
try:
    told = f"{len(soundfile.read('unknown.flac')[0])} frames"
except ValueError as error:
    told = str(error)
with soundfile.SoundFile("unknown.flac") as file:
    block = len(file.read(1000))
print(soundfile.__version__, soundfile.__libsndfile_version__, "frames:", frames, "read:", told, "a block of 1,000:", block)
sys.exit(not (frames == 2**63 - 1 and "too big" in told and block == 1000))
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q soundfile==0.14.0
cd "$work"
venv/bin/python read.py
