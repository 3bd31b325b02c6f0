"""A codec as a program, for `--codec "command:PYTHON examples/codec_program.py"`: copy it, and write your codec in Loudness's place.

It runs with the Python of another environment and needs nothing of ttt-dist: the standard library, NumPy, and soundfile.
The lines that it reads and writes are told of in docs/codecs.md.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile


class Loudness:
    """Sixteen steps of loudness, 25 a second, and a hum that is as loud."""

    hop = 320

    def __init__(self) -> None:
        self.about = {
            "name": "loudness",
            "hash": "1",  # has to change with whatever changes the codes: a checksum of the weights, a version
            "sample_rate": 8000,
            "frame_rate": 25.0,
            "codes_per_frame": 1,
            "codebook_size": 16,
        }

    def encode(self, waves: list[np.ndarray]) -> list[list[int]]:
        """Waveforms [T_i], float32 -> codes [ceil(T_i / hop) * codes_per_frame], those that each would have alone."""
        padded = [np.pad(wave, (0, -len(wave) % self.hop)) for wave in waves]
        loud = [np.sqrt(np.square(wave.reshape(-1, self.hop)).mean(axis=1)) for wave in padded]
        return [np.clip(np.round(30 * one), 0, 15).astype(int).tolist() for one in loud]

    def decode(self, codes: list[int]) -> np.ndarray:
        """Codes -> waveform at `sample_rate`, in -1..1."""
        hum = np.sin(np.arange(self.hop) * 2 * np.pi * 200 / self.about["sample_rate"])
        return (np.array(codes)[:, None] / 30 * hum).flatten().astype(np.float32)


def serve(make_codec: Callable[[], Any]) -> None:
    """Answer what is asked until standard input ends. What libraries print goes to stderr, from their import on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    codec = make_codec()
    answer(codec.about)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "encode" in asked:
                waves = [soundfile.read(path, dtype="float32")[0] for path in asked["encode"]]
                answer({"codes": codec.encode(waves)})
            else:
                soundfile.write(
                    asked["wav"], codec.decode(asked["decode"]), codec.about["sample_rate"], subtype="FLOAT"
                )
                answer({})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(Loudness)
