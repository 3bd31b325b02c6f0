"""Synthesise the speech that the repository ships: the ten digits, spoken by six voices, ten takes each.

Needs the program espeak-ng. The files are committed, so this is run only to make them anew:

    python tools/make_demo_speech.py --out demo_speech

A formant synthesiser says a word the same way every time, which no recording does: the takes of one word differ in
speed, pitch, vocal-tract length (a resampling by a few percent), loudness and a faint noise floor. All draws follow
from the seed.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ttt_dist.errors import UserError
from ttt_dist.telemetry.console import Progress, main_guard, say

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = {  # name: (espeak voice, middle pitch 0..99)
    "alice": ("en-us+f2", 55),
    "bruno": ("en-gb+m3", 40),
    "clara": ("en-gb-scotland+f4", 60),
    "david": ("en-us+m7", 30),
    "emma": ("en-gb-x-rp+f5", 65),
    "felix": ("en-gb-x-gbcwmd+m1", 50),
}
SAMPLE_RATE = 16000
SPEEDS = (130, 190)  # words per minute
PITCH_SPREAD = 15
STRETCH = 0.03  # share by which a take's vocal tract is longer or shorter
PEAK_DB = (-14.0, -4.0)
NOISE_DB = (-72.0, -62.0)
STEP = 2**-11  # 12 bits: FLAC leaves out low bits that are zero, which here makes the files a third smaller
MARGIN_S = 0.02  # of silence kept around the word


def speak(word: str, voice: str, speed: int, pitch: int) -> tuple[Tensor, int]:
    """The word as espeak-ng says it: waveform [T] and its sample rate. Raises UserError where espeak-ng fails."""
    import soundfile
    import torch

    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    process = subprocess.run(command, capture_output=True, check=False)
    if process.returncode or not process.stdout:
        raise UserError(f"espeak-ng -v {voice}: failed ({process.stderr.decode(errors='replace').strip()})")
    data, rate = soundfile.read(io.BytesIO(process.stdout), dtype="float32")
    return torch.from_numpy(data), rate


def trim(wave: Tensor, sample_rate: int) -> Tensor:
    """Cut what lies below -40 dB of the peak at both ends, but for a margin."""
    loud = (wave.abs() > 0.01 * wave.abs().max()).nonzero().flatten()
    margin = round(MARGIN_S * sample_rate)
    return wave[max(int(loud[0]) - margin, 0) : int(loud[-1]) + margin]


def take(word: str, speaker: str, index: int, takes: int, seed: int) -> Tensor:
    """One take at SAMPLE_RATE, [T]. Speeds are spread evenly over the takes; the rest is drawn."""
    import torch

    from ttt_dist.audio.files import resample

    generator = random.Random(f"{seed} {word} {speaker} {index}")
    voice, middle = SPEAKERS[speaker]
    step = (index * 7 % takes + generator.random()) / takes  # 7: neighbouring takes differ, all tenths are met
    speed = round(SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * step)
    pitch = min(max(middle + generator.randint(-PITCH_SPREAD, PITCH_SPREAD), 0), 99)
    wave, rate = speak(word, voice, speed, pitch)
    stretched = round(rate * (1 + generator.uniform(-STRETCH, STRETCH)) / 50) * 50
    wave = trim(resample(wave, stretched, SAMPLE_RATE), SAMPLE_RATE)
    wave = wave * (10 ** (generator.uniform(*PEAK_DB) / 20) / wave.abs().max())
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(generator.getrandbits(60)))
    wave = wave + noise * 10 ** (generator.uniform(*NOISE_DB) / 20)
    return (wave / STEP).round() * STEP


def main() -> None:
    """Write OUT/{word}_{speaker}_{index}.flac for all words, speakers and takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_speech"), help="folder to write to (demo_speech)")
    parser.add_argument("--takes", type=int, default=10, help="takes of each word by each voice (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="decides every draw (default 0)")
    args = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng: not found; install it (Debian: apt-get install espeak-ng)")
    import soundfile

    args.out.mkdir(parents=True, exist_ok=True)
    size, seconds = 0, 0.0
    with Progress(len(WORDS) * len(SPEAKERS) * args.takes, "speaking", "file") as progress:
        for speaker in SPEAKERS:
            for word in WORDS:
                for index in range(args.takes):
                    path = args.out / f"{word}_{speaker}_{index}.flac"
                    wave = take(word, speaker, index, args.takes, args.seed)
                    soundfile.write(path, wave.numpy(), SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
                    size, seconds = size + path.stat().st_size, seconds + len(wave) / SAMPLE_RATE
                    progress.advance()
    say(f"{args.out}: {seconds:.0f} s of speech, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main_guard(main)
