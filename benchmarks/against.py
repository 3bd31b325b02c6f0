"""This build against another revision of itself: speed and peak memory of the same work, in turn.

    python -m benchmarks.against REVISION [--only NAME ...] [--runs N] [--out benchmarks/results/DATE-against.md]

REVISION is checked out into a temporary git worktree, which is removed at the end. A workload is a file of
benchmarks/workloads of this build that uses only what both builds have; it runs in a process of its own, in the folder and
with the modules of the build under test, on the same inputs and the same installed packages. After one run each to warm up
(compiling Python's files, filling the disk's cache) the builds take turns: this one, the other, this one, ...; every such
pair gives a ratio. The last line is one JSON object, for each key the median of

- `speed`: this build's over the other's, more is better;
- `memory`: peak memory of this build over the other's. Peak memory is the largest resident set of a single process among
  the workload's own and all that it started and waited for (Linux, ru_maxrss of wait4); it is no sum over processes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from benchmarks.result_file import head, result_path
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).resolve().parent / "workloads"
THIS = "this build"
# On Linux a process's peak begins with that of the one that started it. So a small interpreter stands between: it starts the
# workload and writes exit status and peak (kB) into a file.
BETWEEN = """
import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[2:]]), 0)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
"""


@dataclass(frozen=True)
class Workload:
    """What a key stands for: a file of the workloads' folder, its arguments, and how many pairs of runs are measured."""

    file: str
    arguments: tuple[str, ...] = ()
    runs: int = 3


WORKLOADS = {  # cheap ones first
    "help": Workload("command.py", ("help",), 5),
    "stats": Workload("command.py", ("stats",), 5),
    "dry_run": Workload("command.py", ("dry_run",), 5),
    "open_2000_shards": Workload("shards.py", ("open",), 5),
    "read_2000_shards": Workload("shards.py", ("read",), 5),
    "read_usual": Workload("reading.py", ("usual",), 5),
    "read_11127hz": Workload("reading.py", ("11127",), 1),
    "read_22254hz": Workload("reading.py", ("22254",), 1),
    "read_44099hz": Workload("reading.py", ("44099",), 1),
    "manifest_aishell1": Workload("manifest.py", ("aishell1",), 5),
    "manifest_commonvoice": Workload("manifest.py", ("commonvoice",), 5),
    "manifest_librispeech": Workload("manifest.py", ("librispeech",), 5),
    "manifest_pattern": Workload("manifest.py", ("pattern",), 5),
    "compose_12.5hz": Workload("compose.py", (), 5),
    "train_step": Workload("train_step.py", ("demo",), 5),
    "train_step_vocab": Workload("train_step.py", ("vocab",), 3),
    "encode_batches": Workload("encode.py", (), 3),
    "decode_1": Workload("decode.py", ("--batch", "1"), 3),
    "decode_8": Workload("decode.py", ("--batch", "8"), 3),
    "decode_32": Workload("decode.py", ("--batch", "32"), 3),
}


class Run(NamedTuple):
    """One run of a workload."""

    speed: float
    memory: int
    """Peak, in bytes."""


Pairs = list[tuple[Run, Run]]
"""Runs of this build and of the other, each pair one after the other."""


def main() -> None:
    """Measure every workload that was asked for, and print the ratios."""
    signal.signal(signal.SIGTERM, _leave)
    arguments = parse_arguments()
    chosen = choose(WORKLOADS, arguments.only, arguments.runs)
    figures: dict[str, dict[str, Any]] = {}
    with worktree(ROOT, arguments.revision) as other, tempfile.TemporaryDirectory(prefix="against-") as inputs:
        trees = {THIS: ROOT, arguments.revision: other}
        for key, workload in chosen.items():
            figures[key] = ratios(measure(key, workload, trees, Path(inputs)))
            print_rank0(line(key, figures[key]))
        revision = git(other, "rev-parse", "HEAD")
    if arguments.out:
        write_result(arguments.out, arguments.revision, revision, figures)
        print_rank0(f"wrote {arguments.out}")
    print_json({key: {name: of_key[name] for name in ("speed", "memory")} for key, of_key in figures.items()})


def _leave(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the command as Ctrl-C does: the worktree is removed."""
    sys.exit(128 + number)


def choose(workloads: Mapping[str, Workload], only: Sequence[str] | None, runs: int | None) -> dict[str, Workload]:
    """The workloads by these names, in the table's order. Raises UserError where a file is absent."""
    chosen = {}
    for key, workload in workloads.items():
        if only and key not in only:
            continue
        if not (FOLDER / workload.file).is_file():
            raise UserError(f"{key}: benchmarks/workloads/{workload.file} is absent; leave the key out by --only")
        chosen[key] = Workload(workload.file, workload.arguments, runs or workload.runs)
    return chosen


@contextmanager
def worktree(repository: Path, revision: str) -> Iterator[Path]:
    """A checkout of `revision` in a temporary folder, for as long as the context lasts. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        tree = Path(folder) / "tree"
        commit = git(repository, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
        try:
            git(repository, "worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            if tree.exists():
                git(repository, "worktree", "remove", "--force", "--force", str(tree))
            git(repository, "worktree", "prune")


def git(repository: Path, *words: str) -> str:
    """What git says. Raises UserError with its last line where it fails."""
    done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]}: {_last_line(done.stderr)}")
    return done.stdout.strip()


def measure(key: str, workload: Workload, trees: Mapping[str, Path], inputs: Path) -> Pairs:
    """Run a workload in both trees in turn, after a run each to warm up. Raises UserError where a run fails."""
    file, folder = FOLDER / workload.file, inputs / key
    folder.mkdir()
    words = [str(file), *workload.arguments, "--folder", str(folder)]
    if "\ndef prepare(" in file.read_text(encoding="utf8"):
        start(f"{key}, preparing", [*words, "--prepare"], trees[THIS])
    for name, tree in trees.items():
        run_once(f"{key}, {name}", words, tree)
    pairs = []
    for _ in range(workload.runs):
        this, other = (run_once(f"{key}, {name}", words, tree) for name, tree in trees.items())
        pairs.append((this, other))
    return pairs


def run_once(label: str, words: Sequence[str], tree: Path) -> Run:
    """One run; its speed is the last line that it prints. Raises UserError where it fails or prints no speed."""
    stdout, memory = start(label, words, tree)
    try:
        speed = float(json.loads(_last_line(stdout))["speed"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{label}: the last line is no {{"speed": ...}}: {_last_line(stdout)}') from None
    return Run(speed, memory)


def start(label: str, words: Sequence[str], tree: Path) -> tuple[str, int]:
    """Run Python with these words on a tree's modules: what it printed, and its peak memory in bytes. Raises UserError."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    with tempfile.TemporaryDirectory(prefix="against-") as place:
        outcome, *outputs = (Path(place) / name for name in ("outcome", "stdout", "stderr"))
        command = [sys.executable, "-I", "-S", "-c", BETWEEN, str(outcome), "-P", *words]
        with outputs[0].open("w") as stdout, outputs[1].open("w") as stderr:
            between = subprocess.Popen(
                command, cwd=tree, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
            )
            try:
                between.wait()
            except BaseException:  # Ctrl-C: nothing that was started stays
                os.killpg(between.pid, signal.SIGKILL)
                between.wait()
                raise
        status, kilobytes = map(int, outcome.read_text().split())
        printed, told = (path.read_text(errors="replace") for path in outputs)
    if status:
        raise UserError(f"{label}: ended with exit status {status}: {_last_line(told)}")
    return printed, 1024 * kilobytes


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "(nothing)"


def ratios(pairs: Pairs) -> dict[str, Any]:
    """Medians of the pairs' ratios, their spread, and the medians that each side had by itself."""
    speeds = [this.speed / other.speed for this, other in pairs]
    memories = [this.memory / other.memory for this, other in pairs]
    sides = list(zip(*pairs, strict=True))
    return {
        "speed": round(statistics.median(speeds), 3),
        "memory": round(statistics.median(memories), 3),
        "speeds": [round(min(speeds), 3), round(max(speeds), 3)],
        "memories": [round(min(memories), 3), round(max(memories), 3)],
        "pairs": len(pairs),
        "median_speeds": [statistics.median(run.speed for run in side) for side in sides],
        "median_bytes": [statistics.median(run.memory for run in side) for side in sides],
    }


def line(key: str, figures: Mapping[str, Any]) -> str:
    """A key's figures for a reader."""
    this, other = (size / 1e6 for size in figures["median_bytes"])
    (slowest, fastest), (least, most) = figures["speeds"], figures["memories"]
    return (
        f"{key:18} speed {figures['speed']:.2f} ({slowest:.2f} to {fastest:.2f}), memory {figures['memory']:.3f} "
        f"({least:.3f} to {most:.3f}; {this:,.0f} and {other:,.0f} MB), {figures['pairs']} pair(s)"
    )


def write_result(path: Path, name: str, revision: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """A dated file: hardware, command, revisions, table."""
    rows = []
    for key, of_key in figures.items():
        (slowest, fastest), (least, most) = of_key["speeds"], of_key["memories"]
        speeds = " / ".join(f"{speed:.4g}" for speed in of_key["median_speeds"])
        sizes = " / ".join(f"{size / 1e6:,.0f}" for size in of_key["median_bytes"])
        rows.append(
            f"| {key} | **{of_key['speed']:.2f}** | {slowest:.2f} to {fastest:.2f} | {speeds} | **{of_key['memory']:.3f}** "
            f"| {least:.3f} to {most:.3f} | {sizes} | {of_key['pairs']} |"
        )
    text = [
        *head(f"This build against {name}", "benchmarks.against"),
        f"- The other build: {revision}",
        "",
        "| | speed | spread | this / other | memory | spread | MB, this / other | pairs |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "What the figures mean: docstring of `benchmarks/against.py`; what a key does: its file in `benchmarks/workloads`.",
        "",
    ]
    path.write_text("\n".join(text), encoding="utf8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="commit, branch or tag to compare with")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=f"some of: {', '.join(WORKLOADS)}")
    parser.add_argument("--runs", type=int, help="pairs of runs (default: each workload's own number)")
    parser.add_argument("--out", type=result_path, help="Markdown file to write the result to")
    arguments = parser.parse_args()
    if arguments.runs is not None and arguments.runs < 1:
        parser.error("--runs must be at least 1")
    return arguments


if __name__ == "__main__":
    run_command(main)
