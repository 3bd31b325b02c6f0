"""Speed of data preparation on one core: composing against the released way, packing a million samples, encoding.

    python -m benchmarks.data_prep                                          everything, on CPU (about 15 minutes)
    python -m benchmarks.data_prep --only compose
    python -m benchmarks.data_prep --only encode --device cuda --out benchmarks/results/DATE-data-prep-cuda.md

Compose: ASR and TTS samples of segments of 10 to 30 s at 12.5 and at 50 codes a second, from codes on disk to checksummed
parts of samples on disk, against the released way: the same codes as ChatML strings with `<|audio_N|>` for each, through
the Hugging Face tokenizer (nothing read or written). Pack: the command itself on a million composed samples of two
distributions of length, with the memory that it needs beyond its imports and the mapped files. Encode: hours of audio
per hour with each codec at its published size and random weights.

The last line is one JSON object with `compose_speedup` (audio-heavy: at 50 codes a second), `compose_speedup_12.5hz`,
`pack_fill`, `pack_samples_per_minute` and the codecs' rates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.released_way import ReleasedWay
from benchmarks.result_file import head, result_path
from data_prep.__main__ import main as data_prep
from data_prep.jobs.codes_writer import PartWriter
from data_prep.packing.sample_parts import SampleWriter
from ttt_dist.data.shards import ShardReader
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.console import print_json, print_rank0, run_command

NUM_CODES = 16_384
SEQ_LEN = 4096
PART_SAMPLES = 50_000
ROUNDS = 3
CODE_RATES = (12.5, 50.0)  # GLM-4-Voice's; XCodec2's and NeuCodec's
WORDS = "the quick brown fox jumps over a lazy dog while seven old ships sail from here to there every single morning"


def speech(num_utterances: int, code_rate: float, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    """Codes [n] and text of segments of 10 to 30 s, at `code_rate` codes and about 2.5 words a second."""
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(10, 30, num_utterances)
    words = np.array(WORDS.split())
    return [
        (rng.integers(0, NUM_CODES, int(code_rate * one), dtype=np.int32), " ".join(rng.choice(words, int(2.5 * one))))
        for one in seconds
    ]


def compose_speed(folder: Path, num_utterances: int, code_rate: float) -> dict[str, float]:
    """Tokens a second and core of `data_prep compose` and of the released way, on the same utterances."""
    utterances = speech(num_utterances, code_rate)
    released = ReleasedWay(folder / "released", [text for _, text in utterances], NUM_CODES)
    codes = folder / "codes"
    codec = {"name": "melvq", "hash": "0", "sample_rate": 16000, "frame_rate": 12.5, "codebook_size": NUM_CODES}
    (codes / "codec").mkdir(parents=True)
    (codes / "codec" / "codec.json").write_text(json.dumps(codec))
    with PartWriter(part_prefix(codes, 0)) as writer:
        for number, (one, text) in enumerate(utterances):
            writer.add({"id": str(number), "text": text}, [one])
        in_part = {"utterances": len(utterances), "codes": sum(len(one) for one, _ in utterances), "seconds": 0.0}
        made = {"manifest": {"name": "none"}, "codec": codec, "made_from": {}}
        writer.finish({**made, "part": 0, "parts": 1, "counts": in_part, "problems": []})
    command = ["compose", "--codes", str(codes), "--template", "asr,tts", "--tokenizer", str(released.tokenizer_folder)]
    data_prep([*command, "--out", str(folder / "samples")])
    counts = ShardReader(part_prefix(folder / "samples", 0)).meta["counts"]
    released.load()
    ours, theirs, their_tokens = [], [], 0
    for number in range(ROUNDS):  # in turn, and the best of each: what else the machine does takes its share of both
        ours.append(cpu_seconds(partial(data_prep, [*command, "--out", str(folder / str(number))]))[0])
        seconds, their_tokens = cpu_seconds(lambda: released.run(utterances))
        theirs.append(seconds)
    our_rate, their_rate = counts["tokens"] / min(ours), their_tokens / min(theirs)
    return {
        "tokens_per_s": round(our_rate),
        "released_tokens_per_s": round(their_rate),
        "speedup": round(our_rate / their_rate, 1),
        "audio_share": round(counts["audio_tokens"] / counts["tokens"], 3),
    }


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, all threads, and what `work` returns: per core whatever else the machine does."""
    start = time.process_time()
    returned = work()
    return time.process_time() - start, returned


def librispeech_like(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """ASR and TTS samples of utterances of 2 to 17 s, most around 14 s, at 12.5 codes and 3 text tokens a second."""
    usual = np.clip(rng.normal(14, 1.6, num_samples), 2, 17)
    seconds = np.where(rng.random(num_samples) < 0.7, usual, rng.uniform(2, 16, num_samples))
    text, codes = (seconds * 3).astype(int), (seconds * 12.5).astype(int)
    is_asr = rng.integers(0, 2, num_samples).astype(bool)
    return np.where(is_asr, 2 * codes + text + 77, codes + 2 * text + 60) + 2 * -(-text // 13)


def chat_like(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Chats: log-normal, half of them above 350 tokens, one in 800 too long for a pack of 4,096."""
    return np.clip(np.exp(rng.normal(np.log(350), 0.8, num_samples)), 20, 8192).astype(int)


LENGTHS = {"librispeech_like": librispeech_like, "chat_like": chat_like}


def write_samples(folder: Path, lengths: np.ndarray) -> None:
    """Composed samples of these lengths, in parts."""
    layout = bare_layout()
    ids = np.random.default_rng(0).integers(0, 256, int(lengths.max()), dtype=np.int32)
    num_parts = -(-len(lengths) // PART_SAMPLES)
    made_from = {"settings": {}, "templates": ["benchmark"]}
    for number in range(num_parts):
        with SampleWriter(part_prefix(folder, number), number, num_parts, layout, made_from) as writer:
            for length in lengths[number * PART_SAMPLES : (number + 1) * PART_SAMPLES].tolist():
                writer.add(Sample.of([Segment(ids[: length // 2], False), Segment(ids[length // 2 : length], True)]))


def bare_layout() -> TokenLayout:
    """256 texts, and the codes."""
    special_ids = {
        name: 256 + i for i, name in enumerate(("pad", "im_start", "im_end", "begin_of_audio", "end_of_audio"))
    }
    first_code = 262
    last = first_code + NUM_CODES
    special_ids |= {
        "begin_of_quad": 261,
        "mask": last,
        "end_of_audio_new": last + 1,
        "end_of_audio_span_last": last + 2,
    }
    return TokenLayout(
        tokenizer="benchmark",
        tokenizer_hash="",
        num_text_tokens=256,
        special_ids=special_ids,
        first_code=first_code,
        num_codes=NUM_CODES,
        vocab_size=last + 3,
        padded_vocab_size=-(-(last + 3) // 128) * 128,
    )


def pack_speed(folder: Path, name: str, num_samples: int) -> dict[str, float]:
    """Samples a minute of one core, fill, and peak memory, of `data_prep pack` in a process of its own."""
    write_samples(folder / "samples", LENGTHS[name](num_samples, np.random.default_rng(1)))
    command = [sys.executable, "-m", "benchmarks.data_prep", "--pack-here", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


class OwnMemory(threading.Thread):
    """The most memory of its own that this process has while the block runs, in MB; pages of mapped files are not counted."""

    def __enter__(self) -> "OwnMemory":
        self.daemon, self.peak, self.ended = True, 0.0, threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, own_memory())


def own_memory() -> float:
    """RssAnon of this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def pack_here(folder: Path) -> dict[str, float]:
    """Pack the samples of `folder` in this process; memory beyond what it has after its imports."""
    import torch  # noqa: F401  what the command imports is no part of the rate

    before = own_memory()
    out = folder / "shards" / "train"
    command = ["pack", "--samples", str(folder / "samples"), "--seq-len", str(SEQ_LEN), "--out", str(out)]
    with OwnMemory() as memory:
        seconds, _ = cpu_seconds(lambda: data_prep([*command, "--max-errors", "1000000000"]))
    counts, too_long = ShardReader(out).meta["counts"], ShardReader(out).meta["too_long"]
    return {
        "samples_per_minute": round(60 * (counts["samples"] + too_long["dropped"]) / seconds),
        "fill": counts["fill"],
        "dropped": too_long["dropped"],
        "own_memory_mb": round(memory.peak - before),
    }


def measure(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what, figures) of each part of the benchmark that is asked for."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        if args.only in (None, "compose"):
            for code_rate in CODE_RATES:
                found = compose_speed(folder / f"compose-{code_rate}", args.utterances, code_rate)
                yield f"compose at {code_rate:g} Hz", found
        if args.only in (None, "pack"):
            for name in LENGTHS:
                yield f"pack {name}", pack_speed(folder / name, name, args.samples)
        if args.only in (None, "encode"):
            from benchmarks.codec_speed import encode_rates

            yield "encode", encode_rates(folder / "codecs", args.device, args.seconds)


def main() -> None:
    """Measure, print, and write the result file where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("compose", "pack", "encode"), help="one part (default: all)")
    parser.add_argument("--utterances", type=int, default=3000, help="utterances that are composed (default 3000)")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples that are packed (default 1,000,000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="audio that each codec encodes (default 60 s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where codecs run (default cpu)")
    parser.add_argument("--scratch", help="folder for 8 GB of temporary files (default: the system's)")
    parser.add_argument("--out", type=result_path, help="Markdown file for the figures")
    parser.add_argument("--pack-here", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pack_here:
        print_json(pack_here(args.pack_here))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    figures: dict[str, dict[str, Any]] = {}
    for name, found in measure(args):
        figures[name] = found
        print_rank0(f"{name}: {json.dumps(found)}")
    if args.out:
        args.out.write_text("\n".join(result_text(figures)) + "\n", encoding="utf-8")
    print_json(summary(figures))


def result_text(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A result file: its head, and a table per part."""
    text = head("Data preparation", "benchmarks.data_prep")
    for name, found in figures.items():
        text += ["", f"## {name.replace('_', ' ')}", "", "| figure | value |", "|---|---|"]
        text += [f"| {key.replace('_', ' ')} | {value:,} |" for key, value in found.items()]
    return [
        *text,
        "",
        "What the figures mean: docstring of `benchmarks/data_prep.py`.",
        "",
        f"`{json.dumps(summary(figures))}`",
    ]


def summary(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that bars are set for; of the two distributions the worse."""
    packed = [found for name, found in figures.items() if name.startswith("pack ")]
    last: dict[str, Any] = {}
    if f"compose at {CODE_RATES[-1]:g} Hz" in figures:
        slow, fast = (figures[f"compose at {code_rate:g} Hz"] for code_rate in CODE_RATES)
        last |= {"compose_speedup": fast["speedup"], "compose_speedup_12.5hz": slow["speedup"]}
    if packed:
        last["pack_fill"] = min(found["fill"] for found in packed)
        last["pack_samples_per_minute"] = min(found["samples_per_minute"] for found in packed)
    return last | {"audio_hours_per_hour": figures["encode"]} if "encode" in figures else last


if __name__ == "__main__":
    run_command(main)
