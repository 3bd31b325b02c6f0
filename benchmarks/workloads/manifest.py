"""Utterances per CPU second of `data_prep manifest`, by a reader: a workload of `benchmarks.against`.

    python -P benchmarks/workloads/manifest.py READER [--prepare] --folder INPUTS

The corpora have 6,000 utterances, in the layout in which each is published; all recordings are names (hard links) of a few.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

COUNT, RATE = 6000, 16_000
TEXT = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"


def librispeech(folder: Path, link: Callable[[Path], None]) -> None:
    """SPEAKER/CHAPTER with a file of transcripts for 60 recordings."""
    for chapter in range(COUNT // 60):
        place = folder / "train-clean-100" / str(100 + chapter) / "1"
        place.mkdir(parents=True)
        names = [f"{100 + chapter}-1-{number:04d}" for number in range(60)]
        (place / f"{100 + chapter}-1.trans.txt").write_text("".join(f"{name} {TEXT}\n" for name in names))
        for name in names:
            link(place / f"{name}.flac")


def aishell1(folder: Path, link: Callable[[Path], None]) -> None:
    """wav/SPLIT/SPEAKER and one file of transcripts."""
    (folder / "transcript").mkdir(parents=True)
    lines = []
    for number in range(COUNT):
        place = folder / "wav" / "train" / f"S{number // 100:04d}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"BAC009S{number // 100:04d}W{number:04d}"
        link(place / f"{name}.wav")
        lines.append(f"{name} 而 对 楼市 成交\n")
    (folder / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf8")


def commonvoice(folder: Path, link: Callable[[Path], None]) -> None:
    """A table beside clips/."""
    (folder / "clips").mkdir(parents=True)
    names = [f"common_voice_en_{number}.mp3" for number in range(COUNT)]
    for name in names:
        link(folder / "clips" / name)
    rows = "".join(f"s{number % 50}\t{name}\t{TEXT.capitalize()}.\ten\n" for number, name in enumerate(names))
    (folder / "train.tsv").write_text(f"client_id\tpath\tsentence\tlocale\n{rows}")


def pattern(folder: Path, link: Callable[[Path], None]) -> None:
    """Names that say all."""
    folder.mkdir(parents=True)
    for number in range(COUNT):
        link(folder / f"seven_s{number % 50}_{number}.wav")


READERS = {
    "aishell1": (aishell1, []),
    "commonvoice": (commonvoice, []),
    "librispeech": (librispeech, []),
    "pattern": (pattern, ["--pattern", "{text}_{speaker}_{index}.wav"]),
}


def prepare(folder: Path, reader: str) -> None:
    """The corpus."""
    import numpy as np
    import soundfile

    sound = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    for kind in ("wav", "flac", "mp3"):
        soundfile.write(folder / f"sound.{kind}", sound, RATE)
    READERS[reader][0](folder / reader, lambda path: os.link(folder / f"sound{path.suffix}", path))


def main() -> None:
    """Prepare, or list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.prepare:
        return prepare(args.folder, args.reader)
    with tempfile.TemporaryDirectory() as out:
        words = ["--reader", args.reader, "--source", str(args.folder / args.reader), *READERS[args.reader][1]]
        command = [sys.executable, "-m", "data_prep", "manifest", *words, "--out", f"{out}/m.jsonl"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with Path(out, "m.jsonl").open() as lines:
            count = sum(1 for _ in lines)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    if count != COUNT:
        sys.exit(f"{count} utterances of {COUNT}")
    sys.stdout.write(json.dumps({"speed": count / (usage.ru_utime + usage.ru_stime)}) + "\n")


if __name__ == "__main__":
    main()
