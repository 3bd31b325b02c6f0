"""A decoder of codes: `keep_codes.py CODES WAV KEPT` copies the codes to KEPT and writes silence of their length."""

import json
import shutil
import sys
import wave

RATE, HOP = 8000, 320

codes, wav, kept = sys.argv[1:]
shutil.copyfile(codes, kept)
with open(codes) as given, wave.open(wav, "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(RATE)
    file.writeframes(bytes(2 * HOP * len(json.load(given))))
