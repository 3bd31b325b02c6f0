"""The way from recordings to shards on a small corpus, as the tests of data preparation at scale run it: undisturbed, in
pieces, or killed again and again.

    python -m tests.prep_way kill --corpus DIR --out DIR --kills 50 --seed 0      prints one JSON line of figures
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

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
    lines[20] = json.dumps({"id": "gone", "audio": "gone.wav", "text": "one"})
    lines[33] = "{broken"
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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, leftovers too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a fork of this process, whose imports are done; returns its process id."""
    child = os.fork()
    if child:
        return child
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def kill_again_and_again(corpus: Path, out: Path, kills: int, seed: int) -> dict[str, float]:
    """Run the way until so many runs have been killed at a random moment; each finished way is compared.

    Returns the figures; raises AssertionError where a finished way differs from the undisturbed one by a byte.
    """
    import torch

    from ttt_dist.data.indexed import indexed_dataset

    torch.set_num_threads(1)  # threads do not survive a fork
    indexed_dataset()
    rng = random.Random(seed)
    start = time.monotonic()
    _, status = os.waitpid(in_child(lambda: walk(corpus, out)), 0)
    assert status == 0
    whole = time.monotonic() - start
    wanted = contents(out)
    assert not [name for name in wanted if name.endswith((".tmp", ".lock"))]
    done = compared = resumed = 0
    shutil.rmtree(out)
    while done < kills:
        child = in_child(lambda: walk(corpus, out))
        time.sleep(rng.uniform(0, whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
            resumed += 1
            if rng.random() < 0.7:
                continue
            _, status = os.waitpid(in_child(lambda: walk(corpus, out)), 0)
        assert status == 0, f"exit status {status} after {done} kills"
        found = contents(out)
        assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
        assert not [name for name in wanted if wanted[name] != found[name]]
        compared += 1
        shutil.rmtree(out)
    return {"kills": done, "compared": compared, "seconds_undisturbed": round(whole, 2), "lost": 0}


def main() -> None:
    """The campaign as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["kill"])
    parser.add_argument("--corpus", type=Path, required=True, help="folder for the corpus, made here")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.corpus.exists():
        make_corpus(args.corpus)
    figures = kill_again_and_again(args.corpus, args.out, args.kills, args.seed)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
