#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2).
# Expected: in a NIST SPHERE file of mu-law or A-law samples the field `sample_n_bytes` is a whole number (`-i 1`), as it is for
#   PCM and as NIST's own files have it; and one that ends before its `sample_count` is refused or told.
# Seen: `sample_n_bytes -s1 1`, a string, for both laws; `-i 2` for PCM. Half of such a file is opened with half of the frames.
# Why it matters: who looks for cut-off corpora of telephone speech by multiplying the header's whole numbers finds none.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import re
import sys

import numpy as np
import soundfile

fields = {}
for law in ("ULAW", "ALAW", "PCM_16"):
    soundfile.write(f"{law}.sph", np.zeros(8000), 8000, format="NIST", subtype=law)
    header = open(f"{law}.sph", "rb").read(1024).decode("latin1")
    fields[law] = re.search(r"sample_n_bytes (.*)", header)[1]
content = open("ULAW.sph", "rb").read()
open("half.sph", "wb").write(content[: 1024 + 4000])
frames = soundfile.info("half.sph").frames
print(soundfile.__version__, soundfile.__libsndfile_version__, fields, "frames of half a file:", frames)
sys.exit(not (fields == {"ULAW": "-s1 1", "ALAW": "-s1 1", "PCM_16": "-i 2"} and frames == 4000))
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q soundfile==0.14.0
cd "$work"
venv/bin/python read.py
