#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2).
# Expected: what lies beside a recording does not decide whether it can be read.
# Seen: beside `._a.mp3`, the header that macOS leaves on disks and in archives, `a.mp3` cannot be opened by its path ("bad
#   resource fork"); a WAV beside such a file can, and so can the MP3 by a descriptor.
# Why it matters: a corpus that went through a Mac once loses all of its MP3s, and none of its WAVs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import os
import sys

import numpy as np
import soundfile

tone = 0.3 * np.sin(np.arange(16000) * 0.05)
for name in ("a.mp3", "a.wav"):
    soundfile.write(name, tone, 16000)
    with open(f"._{name}", "wb") as file:
        file.write(bytes.fromhex("0005160700020000").ljust(4096, b"\0"))


def opened(source):
    try:
        return soundfile.SoundFile(source).samplerate
    except soundfile.LibsndfileError as error:
        return str(error).partition(": ")[2]


seen = opened("a.mp3"), opened("a.wav"), opened(os.open("a.mp3", os.O_RDONLY))
print(soundfile.__version__, soundfile.__libsndfile_version__, "MP3, WAV, MP3 by a descriptor:", seen)
sys.exit(not ("resource fork" in str(seen[0]) and seen[1:] == (16000, 16000)))
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q soundfile==0.14.0
cd "$work"
venv/bin/python read.py
