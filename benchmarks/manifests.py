"""Manifests of a million lines: `data_prep filter` beside a plain loop, jq and pandas; listing lhotse's cuts and Kaldi's utterances.

    python -m benchmarks.manifests --work DIR --out FILE.md [--lines 1000000] [--rounds 3]

Every side is a process of its own on one core, in turn, `--rounds` times; told are its least CPU seconds (user and system, from
the interpreter's start to the last byte, its own sums included) and its greatest memory. The baseline does the least that a filter
can: it parses a line, compares, and writes the line. It checks no field, no id, and writes no report.
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.result_file import head, result_path
from ttt_dist.util.console import print_json, print_rank0, run_command

WORDS = "the of and a to in he was that it his her with as had for she not at but be on they have him which said from all this one you were"
PLAIN = """import json, sys
seen, (path, out, kind) = set(), sys.argv[1:]
with open(path, "rb") as lines, open(out, "wb") as kept:
    for raw in lines:
        entry = json.loads(raw)
        if kind == "max":
            keep = entry["duration"] <= 20
        else:
            key = entry["audio"] if kind == "audio" else " ".join(entry["text"].casefold().split())
            keep = key not in seen
            seen.add(key)
        if keep:
            kept.write(raw)
"""
PANDAS = """import sys, pandas
path, out, kind = sys.argv[1:]
with open(out, "w") as kept:
    for rows in pandas.read_json(path, lines=True, chunksize=100_000):
        rows[rows.duration <= 20].to_json(kept, orient="records", lines=True, force_ascii=False)
"""
FILTERS = {
    "--max duration=20": "max",
    "--unique audio": "audio",
    "--unique text": "text",
    "--max duration=20 --unique audio --unique text": None,
}


def write_manifest(path: Path, count: int) -> None:
    """Utterances of 0.4 to 22 s with as many words as that takes to say."""
    draw, words = random.Random(0), WORDS.split()
    with path.open("w", encoding="utf8") as file:
        for number in range(count):
            seconds = round(draw.uniform(0.4, 22), 3)
            entry = {
                "id": f"utt-{number:08d}",
                "audio": f"{number % 997:03d}/utt-{number:08d}.flac",
                "text": " ".join(draw.choices(words, k=1 + int(seconds * 2.5))),
                "duration": seconds,
                "speaker": f"s{draw.randrange(2000)}",
                "lang": draw.choice(["en", "de"]),
                "split": "train",
            }
            file.write(json.dumps(entry) + "\n")


def _recordings(folder: Path) -> list[str]:
    """A thousand empty files: where lengths are stated, a listing looks whether files are there, and opens none."""
    (folder / "audio").mkdir(parents=True)
    names = [str(folder / "audio" / f"{number:04d}.flac") for number in range(1000)]
    for name in names:
        Path(name).touch()
    return names


def write_cuts(folder: Path, count: int) -> Path:
    """A lhotse cut set: a recording of 5 s and its supervision in each cut."""
    names, path = _recordings(folder), folder / "cuts.jsonl"
    with path.open("w", encoding="utf8") as file:
        for number in range(count):
            name = f"utt-{number:08d}"
            source = {"type": "file", "channels": [0], "source": names[number % len(names)]}
            recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": 80000, "duration": 5.0}
            spoken = {"id": name, "recording_id": name, "start": 0.0, "duration": 5.0, "channel": 0, "text": WORDS[:60]}
            spoken |= {"language": "English", "speaker": f"s{number % 2000}"}
            cut = {
                "id": name,
                "start": 0.0,
                "duration": 5.0,
                "channel": 0,
                "supervisions": [spoken],
                "recording": recording,
            }
            file.write(json.dumps(cut | {"type": "MonoCut"}) + "\n")
    return path


def write_kaldi(folder: Path, count: int) -> Path:
    """A data directory: wav.scp, text, utt2spk and utt2dur."""
    names, data = _recordings(folder), folder / "data" / "train"
    data.mkdir(parents=True)
    values: dict[str, Callable[[int], str]] = {
        "wav.scp": lambda number: names[number % len(names)],
        "text": lambda number: WORDS[:60].upper(),
        "utt2spk": lambda number: f"s{number % 2000}",
        "utt2dur": lambda number: "5.0",
    }
    for file_name, value in values.items():
        with (data / file_name).open("w", encoding="utf8") as file:
            file.writelines(f"utt-{number:08d} {value(number)}\n" for number in range(count))
    return data


def measured(command: list[str], log: Path) -> tuple[float, float, float]:
    """(CPU seconds, seconds, MB at its peak) of a process; RuntimeError where it fails."""
    began = time.perf_counter()
    with log.open("wb") as file:
        process = os.posix_spawnp(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), fd) for fd in (1, 2)]
        )
        _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}; {log.read_text()[-500:]}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024


def best(command: list[str], rounds: int, log: Path) -> tuple[float, float, float]:
    """The least seconds of several runs, and the most memory."""
    cpu, wall, memory = zip(*(measured(command, log) for _ in range(rounds)), strict=True)
    return min(cpu), min(wall), max(memory)


def sides(work: Path, flags: str, kind: str | None) -> dict[str, list[str]]:
    """The commands that do the same to the manifest."""
    source, out = str(work / "in.jsonl"), str(work / "out.jsonl")
    known = {
        "data_prep": [sys.executable, "-m", "data_prep", "filter", "--manifest", source, "--out", out, *flags.split()]
    }
    if kind:
        known["json.loads"] = [sys.executable, "-c", PLAIN, source, out, kind]
    if kind == "max":
        known["pandas"] = [sys.executable, "-c", PANDAS, source, out, kind]
        if shutil.which("jq"):
            known["jq"] = ["sh", "-c", f"jq -c 'select(.duration <= 20)' '{source}' > '{out}'"]
    return known


def main() -> None:
    """Measure, write the result file, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and outputs; must not exist")
    parser.add_argument("--out", type=result_path, help="result file to write")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    args.work.mkdir(parents=True)
    write_manifest(args.work / "in.jsonl", args.lines)
    log, figures = args.work / "log.txt", []
    for flags, kind in FILTERS.items():
        for side, command in sides(args.work, flags, kind).items():
            cpu, wall, memory = best(command, args.rounds, log)
            figures.append(
                {"flags": flags, "side": side, "lines_per_s": round(args.lines / cpu), "s": wall, "MB": memory}
            )
            print_rank0(
                f"{flags}, {side}: {args.lines / cpu:,.0f} lines a second of CPU, {wall:.1f} s, {memory:.0f} MB"
            )
    writers: dict[str, Callable[[Path, int], Path]] = {"lhotse": write_cuts, "kaldi": write_kaldi}
    for reader, write in writers.items():
        source = write(args.work / reader, args.lines)
        out = str(args.work / f"{reader}.jsonl")
        command = [
            sys.executable,
            "-m",
            "data_prep",
            "manifest",
            "--reader",
            reader,
            "--source",
            str(source),
            "--out",
            out,
        ]
        cpu, wall, memory = best(command, 1, log)
        figures.append(
            {"flags": f"manifest --reader {reader}", "side": "data_prep", "cpu_s": cpu, "s": wall, "MB": memory}
        )
        print_rank0(f"manifest --reader {reader}: {cpu:.1f} s of CPU, {wall:.1f} s, {memory:.0f} MB")
    if args.out:
        args.out.write_text("\n".join(report(args.lines, args.rounds, figures)) + "\n", encoding="utf8")
    print_json({"lines": args.lines, "figures": figures})


def report(lines: int, rounds: int, figures: Sequence[dict[str, object]]) -> list[str]:
    """The result file."""
    text = head(f"Manifests of {lines:,} lines", "benchmarks.manifests")
    how = f"- One core, each side in turn, the least of {rounds} rounds, listings once; other work ran beside it."
    text += [how, ""]
    text += ["| `data_prep filter` | side | lines a second of CPU | elapsed, s | MB |", "|---|---|---|---|---|"]
    for row in figures:
        if "lines_per_s" in row:
            text.append(
                f"| `{row['flags']}` | {row['side']} | {row['lines_per_s']:,} | {row['s']:.1f} | {row['MB']:.0f} |"
            )
    text += ["", "| listing | CPU, s | elapsed, s | MB |", "|---|---|---|---|"]
    for row in figures:
        if "cpu_s" in row:
            text.append(f"| `{row['flags']}` | {row['cpu_s']:.1f} | {row['s']:.1f} | {row['MB']:.0f} |")
    return text


if __name__ == "__main__":
    run_command(main)
