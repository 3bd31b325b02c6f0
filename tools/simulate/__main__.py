"""A run on a thousand ranks, without them: what its start, its data and its checkpoints ask of each rank and of the file system.

    python -m tools.simulate --ranks 1024 --shards 20000 --samples 1000000000 --checkpoint 7b

Every rank is a process of its own, one after the other on this machine, and does what train.py does before the process group
exists and what the loader does after it, on a set and on checkpoints of that size whose contents are holes. Calls are counted
as they are made (tools/simulate/counting.py). The computing, the network and the speed of a shared file system are not there:
the numbers are what one such system has to answer. The last line is one JSON.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tools.simulate.counting import COUNTER
from tools.simulate.failures import lose_a_rank, lose_a_shard
from tools.simulate.ranks import LOCAL_SIZE, Meter, each_rank
from tools.simulate.synthetic import make_set, write_checkpoint
from ttt_dist.config.loader import read_config
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.set_index import open_index
from ttt_dist.sequence.tokens import TokenLayout, released
from ttt_dist.util.console import Progress, print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = {path.stem.rpartition("-")[2]: path for path in RECIPES.glob("qwen*b.yaml")}
SEQ_LEN = 2048


def main() -> None:
    """Make the set, start the ranks, save, start them again from the checkpoints, let things fail."""
    args = parse_arguments()
    for name, least in (("ranks", 2), ("shards", 1), ("samples", args.shards)):
        if (value := getattr(args, name)) < least:
            raise UserError(
                f"--{name} is {value:,}; take at least {least:,}, as a rank is lost and each shard has a sample"
            )
    with tempfile.TemporaryDirectory(prefix="simulate-", dir=args.folder) as name:
        print_json(simulate(args, Path(name).resolve()))


def simulate(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it in `folder`: the figures."""
    layout, shards = released(), folder / "shards"
    start = time.perf_counter()
    packs = make_set(shards, layout, args.shards, args.samples, SEQ_LEN)
    print_rank0(
        f"a set of {args.shards:,} shards, {packs:,} packs of {SEQ_LEN} tokens, {args.samples:,} samples "
        f"(made in {time.perf_counter() - start:.0f} s)"
    )
    config = settings(args, folder)
    COUNTER.watch(folder)
    meter = Meter()
    open_index(shards / "train")
    made = meter.phase()
    size = (shards / "train.shards").stat().st_size
    print_rank0(
        f"its index, made once by one process: {made.seconds:.1f} s, {made.calls.opens:,} opens, {size / 1e6:.1f} MB"
    )
    asked = ranks_of(args)
    fresh = run_ranks(config, folder, asked, args.ranks, "starting")
    require_one_order(fresh, config, args.ranks)
    print_rank0("\nThe start of a run, and its first packs")
    tell(fresh, args.ranks)
    files = save(config, layout, args.ranks)
    again = run_ranks(config, folder, asked, args.ranks, "starting again")
    print_rank0("\nThe start from a checkpoint")
    tell(again, args.ranks)
    figures = lose_a_shard(config, shards, args.ranks) | lose_a_rank(args.ranks)
    resume_stats = stats_of_resume(again, args.ranks)
    ordinary = [one for one in fresh if one["rank"] % LOCAL_SIZE] or fresh
    return {
        "loader_cpu_s": round(max(one["loader"]["cpu_s"] + one["check"]["cpu_s"] for one in fresh), 3),
        "loader_mb": round(max(one["mb"] for one in fresh), 1),
        "handles": max(max(one["handles"], one["open_handles"]) for one in fresh),
        "opens": max(one["loader"]["calls"]["opens"] + one["check"]["calls"]["opens"] for one in fresh),
        "pack_read_ms": round(mean(one["pack_again_ms"] for one in fresh), 4),
        "resume_stats_per_rank": round(resume_stats / args.ranks, 2),
        "checkpoint_files": len(files),
        "pack_read_first_ms": round(mean(one["pack_first_ms"] for one in fresh), 4),
        "start_cpu_s": round(mean(one["start"]["cpu_s"] for one in ordinary), 3),
        "checkpoint_bytes": sum(files.values()),
        "resume_stats": round(resume_stats),
        **figures,
        "ranks": args.ranks,
        "ranks_run": len(asked),
        "shards": args.shards,
        "packs": packs,
    }


def settings(args: argparse.Namespace, folder: Path) -> Recipe:
    """The recipe's run, on the set and in the folder."""
    own = [
        f"run_dir={folder / 'run'}",
        f"data.train={folder / 'shards' / 'train'}",
        "data.valid=null",
        "data.prefetch=0",
    ]
    own += [
        "train.init_from=null",
        f"train.global_batch={2 * args.ranks}",
        "train.micro_batch=2",
        "train.compile=false",
    ]
    return read_config(SIZES[args.checkpoint], [*own, "telemetry.tensorboard=false", *args.overrides])


def ranks_of(args: argparse.Namespace) -> list[int]:
    """The ranks that are run: all, or, where only some are asked for, every n-th; of each kind there is one."""
    step = args.ranks // args.run | 1 if args.run else 1  # odd, or all would be the first of their machines
    return sorted({*range(0, args.ranks, step), *range(0, args.ranks, LOCAL_SIZE)[1:2]})


def run_ranks(config: Recipe, folder: Path, ranks: Sequence[int], world_size: int, what: str) -> list[dict[str, Any]]:
    """What each rank tells."""
    with Progress(len(ranks), what, "rank") as progress:
        found = []
        for one in each_rank(config, folder, ranks, world_size):
            found.append(one)
            progress.advance()
    return found


def require_one_order(told: Sequence[dict[str, Any]], config: Recipe, world_size: int) -> None:
    """The ranks have read packs of step 0, each of them another, and where all were run, all of a global batch."""
    packs = [pack for one in told for pack in one["packs"]]
    assert len(set(packs)) == len(packs) == config.train.global_batch // world_size * len(told)


def save(config: Recipe, layout: TokenLayout, world_size: int) -> dict[str, int]:
    """As many checkpoints as the run keeps, and one more: the files of the last."""
    start = time.perf_counter()
    for number in range(1 + (config.checkpoint.keep_last or 1)):
        files = write_checkpoint(config, layout, world_size, 100 * (number + 1))
    total, largest = sum(files.values()), max(files.values())
    print_rank0(
        f"\nA checkpoint: {len(files):,} files, {total / 1e9:.1f} GB, the largest {largest / 1e6:.1f} MB; "
        f"{1 + (config.checkpoint.keep_last or 1)} written, {config.checkpoint.keep_last} kept ({time.perf_counter() - start:.1f} s)"
    )
    return files


def stats_of_resume(told: Sequence[dict[str, Any]], num_ranks: int) -> float:
    """The paths that all ranks look for to find a checkpoint: rank 0, and the others as those that were run."""
    first, *others = (one["resume"]["calls"]["stats"] for one in told)
    return float(first + (mean(others) * (num_ranks - 1) if others else 0))


def tell(told: Sequence[dict[str, Any]], num_ranks: int) -> None:
    """A line for each kind of rank, and one for the file system: of kinds of which some were run, all count as these."""
    head = f"{'':20}{'ranks':>6}{'opens':>7}{'lists':>7}{'stats':>8}{'MB read':>9}{'CPU s':>8}"
    print_rank0(
        f"{head}{'MB':>7}{'handles':>9}{'loader s':>10}{'batch ms':>10}{'pack ms: first':>16}{'again':>8}{'open':>7}"
    )
    machines = -(-num_ranks // LOCAL_SIZE)
    kinds = {
        "rank 0": (1, [one for one in told if one["rank"] == 0]),
        "first of a machine": (machines - 1, [one for one in told if one["rank"] and one["rank"] % LOCAL_SIZE == 0]),
        "the others": (num_ranks - machines, [one for one in told if one["rank"] % LOCAL_SIZE]),
    }
    totals = [0.0] * 5
    for kind, (count, ranks) in kinds.items():
        if ranks:
            asked = _asked(ranks)
            totals = [total + count * figure for total, figure in zip(totals, asked, strict=True)]
            print_rank0(_row(kind, count, asked) + _figures(ranks))
    print_rank0(_row("all together", num_ranks, totals))


def _asked(ranks: Sequence[dict[str, Any]]) -> list[float]:
    """Opens, listings, paths looked for, MB read and seconds of CPU until the first batch, of a rank of a kind."""
    phases = [
        one[phase] for one in ranks for phase in ("check", "resume", "start")
    ]  # of the start the loader is a part
    counts = [sum(phase["calls"][name] for phase in phases) for name in ("opens", "listings", "stats")]
    counts += [sum(phase["bytes_read"] for phase in phases) / 1e6, sum(phase["cpu_s"] for phase in phases)]
    return [count / len(ranks) for count in counts]


def _row(kind: str, count: int, asked: Sequence[float]) -> str:
    opens, lists, stats, megabytes, cpu = asked
    return f"{kind:20}{count:>6,}{opens:>7,.0f}{lists:>7,.0f}{stats:>8,.0f}{megabytes:>9,.1f}{cpu:>8.2f}"


def _figures(ranks: Sequence[dict[str, Any]]) -> str:
    """The largest memory and number of handles, the mean of times."""
    largest = max(one["batch_mb"] for one in ranks), max(one["open_handles"] for one in ranks)
    loader = mean(one["loader"]["seconds"] + one["check"]["seconds"] for one in ranks)
    batch = 1e3 * mean(one["batch"]["seconds"] for one in ranks)
    first, again, kept = (mean(one[f"pack_{name}_ms"] for one in ranks) for name in ("first", "again", "open"))
    return f"{largest[0]:>7.1f}{largest[1]:>9}{loader:>10.3f}{batch:>10.1f}{first:>16.3f}{again:>8.3f}{kept:>7.3f}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    summary, _, about = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1024, help="processes of the run")
    parser.add_argument("--shards", type=int, default=20_000, help="of the set that is trained on")
    parser.add_argument("--samples", type=int, default=1_000_000_000, help="in all shards together")
    parser.add_argument("--checkpoint", default="7b", choices=sorted(SIZES), help="of a recipe's size (default: 7b)")
    parser.add_argument("--run", type=int, help="start only about so many of the ranks (default: all)")
    parser.add_argument("--folder", type=Path, help="where to write the set (default: the system's temporary folder)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of the run")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
