"""`data_prep compose` at 12.5 codes a second: samples (asr, tts) per CPU second of the job, imports not counted.

Segments of 10 to 30 s with about 2.5 words a second; words follow Zipf's law over `--words` of them (20,000 as in a
corpus of speech, or 20 as in benchmarks/data_prep.py). The tokenizer is a byte-level BPE trained on the texts.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_CODES = 16_384
UTTERANCES = 20_000
ROUNDS = 3


def texts_of(seconds: np.ndarray, num_words: int, rng: np.random.Generator) -> list[str]:
    """A text for each utterance, of made-up words of 1 to 10 letters, the frequent ones short."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = np.clip(np.log2(np.arange(num_words) + 2) * 0.7 + rng.normal(0, 1, num_words), 1, 10).astype(int)
    words = ["".join(rng.choice(letters[:20], length)) for length in lengths]
    share = 1 / (np.arange(num_words) + 1)
    drawn = rng.choice(num_words, (2.5 * seconds).astype(int).sum(), p=share / share.sum()).tolist()
    ends = np.cumsum((2.5 * seconds).astype(int)).tolist()
    return [" ".join(words[i] for i in drawn[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def prepare(folder: Path, num_words: int) -> None:
    """Codes and a tokenizer."""
    from benchmarks.released_way import train_tokenizer
    from data_prep.jobs.codes_writer import PartWriter
    from ttt_dist.jobs.parts import part_prefix

    rng = np.random.default_rng(0)
    seconds = rng.uniform(10, 30, UTTERANCES)
    texts = texts_of(seconds, num_words, rng)
    train_tokenizer(folder / "tokenizer", texts[:2000])
    codec = {"name": "melvq", "hash": "0", "sample_rate": 16000, "frame_rate": 12.5, "codebook_size": NUM_CODES}
    (folder / "codes" / "codec").mkdir(parents=True)
    (folder / "codes" / "codec" / "codec.json").write_text(json.dumps(codec))
    with PartWriter(part_prefix(folder / "codes", 0)) as writer:
        for number, text in enumerate(texts):
            codes = rng.integers(0, NUM_CODES, int(12.5 * seconds[number]), dtype=np.int32)
            writer.add({"id": str(number), "text": text}, [codes])
        counts = {"utterances": UTTERANCES, "codes": 0, "seconds": 0.0}
        made = {"manifest": {"name": "none"}, "codec": codec, "made_from": {}}
        writer.finish({**made, "part": 0, "parts": 1, "counts": counts, "problems": []})


def main() -> None:
    """Prepare, or compose a few times after a first one that imports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--words", type=int, default=20_000, help="size of the vocabulary (default 20,000)")
    args = parser.parse_args()
    inputs = args.folder / f"compose-{args.words}"
    if args.prepare:
        prepare(inputs, args.words)
        return
    from data_prep.__main__ import main as data_prep

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    command = ["compose", "--codes", str(inputs / "codes"), "--template", "asr,tts", "--tokenizer"]
    seconds = []
    with tempfile.TemporaryDirectory(dir=args.folder) as out:
        for number in range(1 + ROUNDS):
            start = time.process_time()
            data_prep([*command, str(inputs / "tokenizer"), "--out", f"{out}/{number}"])
            seconds.append(time.process_time() - start)
    print(json.dumps({"speed": 2 * UTTERANCES / np.median(seconds[1:])}))


if __name__ == "__main__":
    main()
