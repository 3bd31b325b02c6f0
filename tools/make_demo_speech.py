"""Synthesise the speech that the repository ships: the ten digits, spoken by four voices, ten takes each.

Needs the program flite and two packages beside the project. The files are committed, so this is run only to make them anew:

    apt-get install flite && pip install hibari-tts==0.2.1 ttspico==0.3.2 setuptools wheel
    python tools/make_demo_speech.py --out demo_speech

These voices were chosen because a recogniser understands them (demo_speech/README.md); one speaks with two lengths of the
vocal tract, which makes two speakers of it. A synthesiser says a word much the same way every time, which no recording does:
the takes of one word differ in speed, tract (a resampling by a few percent), loudness and a faint noise floor. All draws follow
from the seed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from ttt_dist.util.console import Progress, print_rank0, run_command
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Voice(NamedTuple):
    """A speaker: one of ENGINES, its voice, and how much higher all of its spectrum lies than that voice's."""

    engine: str
    name: str
    shift: float = 1.0


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = {
    "alice": Voice("hibari", "heart"),
    "bruno": Voice("flite", "rms", 0.92),
    "clara": Voice("pico", "en-GB"),
    "david": Voice("hibari", "heart", 0.88),
}
SAMPLE_RATE = 16000
SPEEDS = (0.9, 1.1)  # of the voice's own
STRETCH = 0.02  # share by which a take's vocal tract is longer or shorter
PEAK_DB = (-14.0, -4.0)
NOISE_DB = (-72.0, -62.0)
STEP = 2**-11  # 12 bits: FLAC leaves out low bits that are zero, which here makes the files a third smaller
MARGIN_S = 0.02  # of silence kept around the word


def by_flite(voice: str, word: str, speed: float) -> tuple[Tensor, int]:
    """By the program: a voice of CMU's, `rms`, `slt`, `awb`, ..."""
    import soundfile
    import torch

    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        stretch = f"duration_stretch={1 / speed}"
        command = ["flite", "-voice", voice, "--setf", stretch, "-t", f"{word}.", "-o", file.name]
        process = subprocess.run(command, capture_output=True, check=False)
        if process.returncode:
            raise UserError(f"flite -voice {voice}: failed ({process.stderr.decode(errors='replace').strip()})")
        data, rate = soundfile.read(file.name, dtype="float32")
    return torch.from_numpy(data), rate


def by_pico(voice: str, word: str, speed: float) -> tuple[Tensor, int]:
    """By SVOX Pico, in a language of its."""
    import torch

    engine = _loaded("ttspico", "TtsEngine", voice)
    engine.rate = round(100 * speed)
    return torch.frombuffer(bytearray(engine.speak(f"{word}.")), dtype=torch.int16) / 2**15, 16000


def by_hibari(voice: str, word: str, speed: float) -> tuple[Tensor, int]:
    """By hibari; its package brings the voice `heart`."""
    import torch

    wave = _loaded("hibari", "Hibari", voice=voice)(f"{word}.", speed=speed, seed=0)
    return torch.from_numpy(wave), 24000


@cache
def _loaded(package: str, name: str, *arguments: Any, **settings: Any) -> Any:
    from importlib import import_module

    try:
        return getattr(import_module(package), name)(*arguments, **settings)
    except ImportError as error:
        raise UserError(f"{package}: cannot be imported ({error}); see the top of {__file__}") from error


ENGINES: dict[str, Callable[[str, str, float], tuple[Tensor, int]]] = {
    "flite": by_flite,
    "pico": by_pico,
    "hibari": by_hibari,
}


def trim(wave: Tensor, sample_rate: int) -> Tensor:
    """Cut what lies below -40 dB of the peak at both ends, but for a margin."""
    loud = (wave.abs() > 0.01 * wave.abs().max()).nonzero().flatten()
    margin = round(MARGIN_S * sample_rate)
    return wave[max(int(loud[0]) - margin, 0) : int(loud[-1]) + margin]


def take(word: str, speaker: str, index: int, takes: int, seed: int) -> Tensor:
    """One take at SAMPLE_RATE, [T]. Speeds are spread evenly over the takes; the rest is drawn."""
    import torch

    from ttt_dist.audio import resample

    generator = random.Random(f"{seed} {word} {speaker} {index}")
    engine, voice, shift = SPEAKERS[speaker]
    step = (index * 7 % takes + generator.random()) / takes  # 7: neighbouring takes differ, all tenths are met
    speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * step
    wave, rate = ENGINES[engine](voice, word.capitalize(), speed / shift)  # the shift changes the speed as well
    stretched = round(rate * shift * (1 + generator.uniform(-STRETCH, STRETCH)) / 50) * 50
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
    if shutil.which("flite") is None:
        raise UserError("flite: not found; install it (Debian: apt-get install flite)")
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
    print_rank0(f"{args.out}: {seconds:.0f} s of speech, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_command(main)
