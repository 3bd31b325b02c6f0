"""Mutated inputs for every entrance that reads what others wrote: each must be read, or refused in one line.

    python -m benchmarks.fuzz [--seconds 900] [--workers 2] [--seed 0] [--out FOLDER] [--only NAME ...]
    python -m benchmarks.fuzz --replay FOLDER/FILE.json

Inputs are functions of the seed, the entrance and a number; another seed gives other ones. What fails is kept in `--out`
with its traceback, and is read again by `--replay`. The last line is one JSON object: how many inputs, how many ended in a
traceback (or in a message that is no line), ended or hung the process, took more than 1 GB, and lost items silently.
Status 1 where there are any.
"""

import argparse
import base64
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes

from benchmarks.fuzz.entrances import ENTRANCES, SOURCE
from benchmarks.fuzz.pool import Campaign
from benchmarks.fuzz.worker import FAULTS, Fault, trial
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

KEPT = 20  # inputs of faults that look like one


class Kept:
    """The faults so far; the inputs of the first of each sort are kept in `out`."""

    def __init__(self, out: Path, seeds: Path, seed: int) -> None:
        self.out, self.seeds, self.seed = out, seeds, seed
        self.counts: Counter[str] = Counter()
        self.sorts: Counter[tuple[str, str, str]] = Counter()
        out.mkdir(parents=True, exist_ok=True)

    def add(self, fault: Fault) -> None:
        self.counts[fault.kind] += 1
        self.sorts[fault.key] += 1
        if self.sorts[fault.key] > KEPT:
            return
        name, content = ENTRANCES[fault.entrance].input(self.seeds / fault.entrance, self.seed, fault.number)
        values = {**vars(fault), "seed": self.seed, "file": name, "content": base64.b64encode(content).decode()}
        path = self.out / f"{re.sub('[^a-z0-9.]+', '-', fault.entrance)}-{self.seed}-{fault.number}.json"
        path.write_text(json.dumps(values, indent=1))
        if self.sorts[fault.key] == 1:
            print_rank0(f"{fault.entrance}: {fault.kind}: {fault.symptom}; kept in {path}")


def campaign(args: argparse.Namespace, place: Path) -> None:
    """Read inputs for as long as was asked for, and tell."""
    seeds, scratch = place / "seeds", place / "scratch"
    scratch.mkdir()
    names = [name for name in ENTRANCES if not args.only or name in args.only]
    for name in names:
        (seeds / name).mkdir(parents=True)
        ENTRANCES[name].make(seeds / name)
    kept = Kept(args.out, seeds, args.seed)
    run = Campaign(names, SOURCE, seeds, scratch, args.seed, kept.add)
    run.run(args.seconds, args.workers)
    for name in names:
        print_rank0(f"{name:<24} {run.inputs[name]:>9,} inputs")
    for (name, kind, symptom), count in sorted(kept.sorts.items()):
        print_rank0(f"{name}: {kind}: {symptom}: {count}")
    print_json({"inputs": sum(run.inputs.values())} | {kind: kept.counts[kind] for kind in FAULTS})
    if found := sum(kept.counts.values()):
        raise UserError(f"{found} inputs were neither read nor refused in a line; see {args.out}, and --replay")


def replay(path: Path, place: Path) -> None:
    """Read one kept input again, in this process."""
    try:
        values = json.loads(path.read_bytes())
        entrance, content = ENTRANCES[values["entrance"]], base64.b64decode(values["content"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--replay {path}: holds no input ({error!r}); name a file of --out") from error
    entrance.make(place)
    (place / values["file"]).write_bytes(content)
    found = trial(entrance, place)
    if found is not None:
        print_rank0(found[2])
        raise UserError(f"{values['entrance']}: {found[0]}: {found[1]}")
    print_rank0(f"{values['entrance']}: read, or refused in a line")


def main() -> None:
    """Run a campaign, or read one input again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="of reading (default 900)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="where inputs that fail are kept (runs/fuzz)"
    )
    parser.add_argument("--only", nargs="+", choices=list(ENTRANCES), help="entrances (default: all)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read one kept input again")
    args = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="fuzz-") as place:
        if args.replay is not None:
            replay(args.replay, Path(place))
        else:
            campaign(args, Path(place))


if __name__ == "__main__":
    run_command(main)
