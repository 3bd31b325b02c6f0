"""The way from recordings to shards on a small corpus, as the tests of data preparation at scale run it: undisturbed, in
pieces, or killed again and again.

    python -m tests.prep_way kill --corpus DIR --out DIR --kills 50 --seed 0      prints one JSON line of figures
    python -m tests.prep_way kill --corpus DIR --out DIR --changes 1              killed before each change of a file
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from tests.shared_work import add_campaign, campaign

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PART_SIZE, SEQ_LEN, SHARD_SAMPLES = 7, 512, 20


def make_corpus(folder: Path, num_utterances: int = 50, seed: int = 0) -> None:
    """Short tones in WAV and FLAC, a manifest of them, and two bad lines."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(num_utterances):
        t = np.arange(int(RATE * rng.uniform(0.3, 1.2))) / RATE
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * t * (1 + t)) + 0.01 * rng.standard_normal(len(t))
        name = f"{number:03d}.{'wav' if number % 2 else 'flac'}"
        soundfile.write(folder / name, wave, RATE)
        text = " ".join(rng.choice(WORDS, 1 + number % 4))
        lines.append(json.dumps({"id": f"u{number}", "audio": name, "text": text, "duration": round(len(t) / RATE, 3)}))
    lines[num_utterances * 2 // 5] = json.dumps({"id": "gone", "audio": "gone.wav", "text": "one"})
    lines[num_utterances * 2 // 3] = "{broken"
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def steps(corpus: Path, out: Path, *share: str) -> Iterator[list[str]]:
    """The commands of data_prep, in order."""
    codec = ["--codec", "melvq", "--train-codec", "--sample-rate", "8000", "--codebook-size", "16"]
    size = ["--part-size", str(PART_SIZE), "--max-errors", "2", "--codec-out", str(out / "codec")]
    yield ["encode", "--manifest", str(corpus / "train.jsonl"), *codec, *size, "--out", str(out / "codes"), *share]
    text = [
        "--template",
        "asr,tts",
        "--train-tokenizer",
        "--vocab-size",
        "300",
        "--tokenizer-out",
        str(out / "tokenizer"),
    ]
    yield ["compose", "--codes", str(out / "codes"), *text, "--out", str(out / "samples"), *share]
    sizes = ["--seq-len", str(SEQ_LEN), "--shard-samples", str(SHARD_SAMPLES)]
    yield ["pack", "--samples", str(out / "samples"), *sizes, "--out", str(out / "shards" / "train"), *share]


def walk(corpus: Path, out: Path, *share: str) -> None:
    """All steps in this process."""
    from data_prep.__main__ import main

    for step in steps(corpus, out, *share):
        main(step)


def main() -> None:
    """The campaign as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder for the corpus, made here")
    parser.add_argument("--utterances", type=int, default=50, help="of the corpus")
    parser.add_argument("--out", type=Path, required=True)
    add_campaign(parser)
    args = parser.parse_args()
    if not args.corpus.exists():
        make_corpus(args.corpus, args.utterances)
    campaign(lambda: walk(args.corpus, args.out), args.out, args)


if __name__ == "__main__":
    main()
