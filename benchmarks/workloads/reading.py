"""Recordings of 5 s read per second, as mono at 24,000 Hz: a workload of `benchmarks.against`.

    python -P benchmarks/workloads/reading.py RATE [--prepare] --folder INPUTS

RATE is that of the recordings (16-bit WAV), or `usual`: a set of 8, 16, 22.05, 24, 44.1 and 48 kHz, WAV, FLAC and MP3. At an
odd rate one recording is read, after one of 24,000 Hz that loads what reading takes; of the usual ones each is read many
times. Besides the speed it tells by how many MB the reading raised the process's peak.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

SECONDS, TARGET, REPEATS = 5, 24_000, 30
USUAL = (8_000, 16_000, 22_050, 24_000, 44_100, 48_000)


def prepare(folder: Path, rate: str) -> None:
    """Noise, in a file for each rate and format."""
    import numpy as np
    import soundfile

    for one in USUAL if rate == "usual" else (int(rate),):
        wave = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * one)
        for kind in ("wav", "flac", "mp3") if rate == "usual" else ("wav",):
            soundfile.write(folder / f"{one}.{kind}", wave, one)
    soundfile.write(folder / "first.WAV", np.zeros(SECONDS * TARGET), TARGET)


def main() -> None:
    """Prepare, or read and tell how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rate")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.folder, args.rate)
        return
    import torch

    import ttt_dist.audio

    torch.set_num_threads(1)
    ttt_dist.audio.read_audio(args.folder / "first.WAV", TARGET)
    files = sorted(args.folder.glob("[0-9]*")) * (REPEATS if args.rate == "usual" else 1)
    before = peak_mb()
    start = time.perf_counter()
    for file in files:
        ttt_dist.audio.read_audio(file, TARGET)
    speed = len(files) / (time.perf_counter() - start)
    sys.stdout.write(json.dumps({"speed": speed, "own_mb": round(peak_mb() - before, 1)}) + "\n")


def peak_mb() -> float:
    """The largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
