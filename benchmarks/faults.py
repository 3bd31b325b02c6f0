"""A campaign of kills and faults against real runs, each of which must end as if nothing had happened.

    python -m benchmarks.faults [--kills 30] [--seed 0] [--out benchmarks/results/DATE-faults.md]

A small model trains on two processes (ZeRO-3; tensor parallel x ZeRO-3; a pipeline, in turn), with saves that training waits
for, saves beside it, and saves on the host's own disk at every other step. `kill -9` strikes all of its processes at random
moments, a third of them while a checkpoint is being written; then come the faults by name, with each way of saving. After
each, the run is started again and must go on from its newest complete checkpoint, with the losses, gradient norms and
final weights of a run that nothing happened to and that waited for its saves, to the last bit. Hosts that are lost while
agents are there (tools/elastic.py) must need no new start: losses are the same up to it, and agree to 1e-5 in the five steps
after it, as the layout is another one then.
`lost` counts the cases where something was.
The last line is one JSON object with `kills`, `faults` and `lost`.
"""

import argparse
import datetime
import itertools
import json
import math
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.result_file import head, result_path
from tests.distributed.agents import Agents
from tests.distributed.small_run import Ranks, copy_of, make_run, records, timeless
from ttt_dist.telemetry.events import read_events
from ttt_dist.util.console import Progress, print_json, print_rank0, run_command
from ttt_dist.util.errors import UserError

FAULTY = "tests/distributed/faulty_train.py"
SMALL_DISK = "tests/distributed/small_disk_train.py"
STEPS, SAVE_EVERY = 40, 4
# Of another layout's figures: in the steps that follow the change, and at the end of a run whose roundings were others.
NEAR, TOLERANCE, DRIFT = 5, 1e-5, 1e-3
WIDTH = 256  # wide enough that saving takes a while, and can be struck
LAYOUTS = {
    "zero3": ("deepspeed=ds_configs/zero3.json",),
    "tensor x zero3": ("deepspeed=ds_configs/zero3.json", "parallel.tensor=2"),
    "pipeline x zero1": ("deepspeed=ds_configs/zero1.json", "parallel.pipeline=2"),
}

SAVING = {
    "": (),
    "beside training": ("checkpoint.async_save=true",),
    "local": ("checkpoint.async_save=true", "checkpoint.local_every=2", "checkpoint.local_dir=$LOCAL_DISK"),
}
"""Ways of saving, each with each layout."""


def settings_of(layout: str) -> tuple[str, ...]:
    """Those of "LAYOUT" or "LAYOUT, WAY OF SAVING"."""
    name, _, saving = layout.partition(", ")
    return (*LAYOUTS[name], *SAVING[saving])


@dataclass(kw_only=True)
class Campaign:
    """What the runs share, and what was found."""

    folder: Path
    random: random.Random
    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    """Layout, what was done, whether all was as it should be."""
    kills: int = 0
    kills_while_saving: int = 0
    faults: int = 0
    waits: list[float] = field(default_factory=list)
    """Seconds from the loss of a host to the next start of the run on the other one."""
    deviations: list[float] = field(default_factory=list)
    """How far figures then were from those of the undisturbed run."""
    reasons: list[str] = field(default_factory=list)
    """What was not as it should be."""

    def start(self, run: Path, layout: str, *settings: str, program: str = "ttt_dist/train.py", **more: str) -> Ranks:
        """The run on two processes; settings replace those of the layout."""
        run.mkdir(parents=True, exist_ok=True)
        config = str(self.folder / "config.yaml")
        arguments = ("--config", config, f"run_dir={run}", *settings_of(layout), *settings)
        more = {"LOCAL_DISK": str(self.folder / "local-disk"), **more}
        return Ranks(2, *arguments, program=program, log=run / "output", **more)

    def undisturbed(self, layout: str) -> Path:
        """The run that the others of the layout must equal, whatever their way of saving."""
        layout = layout.partition(", ")[0]
        run = self.folder / layout.replace(" ", "-") / "undisturbed"
        if not run.exists():
            ranks = self.start(run, layout)
            if ranks.wait(600) != [0, 0]:
                raise RuntimeError(f"the undisturbed run failed:\n{ranks.output()}")
        return run

    def expect(self, holds: bool, what: str, ranks: Ranks) -> bool:
        """Note what does not hold, with the run's output."""
        if not holds:
            self.reasons.append(f"{what}\n{ranks.output()[-3000:]}")
        return holds

    def ends_well(self, run: Path, layout: str, *settings: str) -> bool:
        """Start a disturbed run again: it goes on from its newest checkpoint and equals the undisturbed one."""
        ranks = self.start(run, layout, *settings)
        ended = ranks.wait(600) == [0, 0]
        return self.expect(ended, f"{run} did not end", ranks) and self.as_undisturbed(run, layout, ranks)

    def as_undisturbed(self, run: Path, layout: str, ranks: Ranks) -> bool:
        """Whether figures and weights are those of the undisturbed run, and no start forgot a checkpoint."""
        other, weights = self.undisturbed(layout), "export/model.safetensors"
        return (
            self.expect(timeless(run) == timeless(other), f"{run}: other figures", ranks)
            and self.expect((run / weights).read_bytes() == (other / weights).read_bytes(), f"{run}: weights", ranks)
            and self.expect(not forgotten(run), f"{run}: went on from an older checkpoint", ranks)
        )

    def tell(self, layout: str, what: str, holds: bool) -> None:
        self.rows.append((layout, what, holds))
        print_rank0(f"{layout}: {what}: {'nothing lost' if holds else 'LOST: ' + self.reasons[-1]}")


def forgotten(run: Path) -> bool:
    """Whether any start was from before a checkpoint that was complete by then."""
    newest = 0
    for event in read_events(run):
        if event["event"] == "start" and event["step"] < newest:
            return True
        newest = max(newest, event["step"]) if event["event"] in ("checkpoint", "local_save") else newest
    return False


def kill(campaign: Campaign, layout: str, number: int) -> None:
    """Kill all processes of runs `number` times, starting again after each; what ends meanwhile is compared."""
    folder = campaign.undisturbed(layout).parent / layout.partition(", ")[2].replace(" ", "-")
    count, run, ranks = 0, folder / "killed-0", None
    with Progress(number, f"{layout}: kills", "kill") as progress:
        while count < number:
            ranks = campaign.start(run, layout)
            saving = strike(campaign, ranks, run)
            if saving is None:
                campaign.tell(layout, f"a run after {count} kills", campaign.as_undisturbed(run, layout, ranks))
                run = folder / f"killed-{count}"
                continue
            count += 1
            campaign.kills += 1
            campaign.kills_while_saving += saving
            progress.advance()
    campaign.tell(layout, f"a run after {count} kills", campaign.ends_well(run, layout))


def strike(campaign: Campaign, ranks: Ranks, run: Path) -> bool | None:
    """`kill -9` at a random moment; whether a checkpoint was being written. None where the run ended before."""
    while_saving = campaign.random.random() < 1 / 3
    begin = step_of(run)
    steps = campaign.random.randint(-2, 2 * SAVE_EVERY)  # below 0: while it starts
    deadline = time.monotonic() + campaign.random.uniform(1, 15) if steps < 0 else float("inf")
    moment = campaign.random.uniform(0, 0.2)
    while ranks.running:
        is_saving = any((run / "checkpoints").glob(".step-*"))
        if time.monotonic() > deadline or (is_saving if while_saving else steps >= 0 and step_of(run) >= begin + steps):
            time.sleep(moment)
            is_saving = any((run / "checkpoints").glob(".step-*"))
            ranks.kill()
            return is_saving
        time.sleep(0.005)
    statuses = ranks.wait()
    campaign.expect(statuses == [0, 0], f"{run}: ended with {statuses}", ranks)
    return None


def step_of(run: Path) -> int:
    """Last step that the run has recorded."""
    try:
        return max((record["step"] for record in records(run)), default=0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def until(condition: Callable[[], bool], ranks: Ranks) -> None:
    while ranks.running and not condition():
        time.sleep(0.01)


def damaged(damage: Callable[[Path], None]) -> Callable[[Campaign, Path, str], bool]:
    """The fault of a newest checkpoint that `damage` has been at."""

    def fault(campaign: Campaign, run: Path, layout: str) -> bool:
        shutil.rmtree(run)
        copy_of(campaign.undisturbed(layout), run)
        (run / "events.jsonl").unlink()
        damage(sorted((run / "checkpoints").glob("step-*"))[-1])
        ranks = campaign.start(run, layout)
        well = ranks.wait() == [0, 0] and campaign.as_undisturbed(run, layout, ranks)
        return campaign.expect(well and "skipping a checkpoint" in ranks.output(), f"{run}: damaged", ranks)

    return fault


def truncate(checkpoint: Path) -> None:
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def half_delete(checkpoint: Path) -> None:
    for path in sorted(checkpoint.iterdir())[::2]:
        path.unlink()


def full_disk(campaign: Campaign, run: Path, layout: str) -> bool:
    """No space for the checkpoints after the second, then some again. Who saves beside training is told, and goes on to its end."""
    ranks = campaign.start(run, layout, program=SMALL_DISK, FULL_AFTER="2")
    well = campaign.expect(set(ranks.wait()) == {1}, f"{run}: a full disk", ranks)
    told = "no space left" in ranks.output() and "Traceback" not in ranks.output()
    return well and campaign.expect(told, f"{run}: one line", ranks) and campaign.ends_well(run, layout)


def full_for_a_while(campaign: Campaign, run: Path, layout: str) -> bool:
    """No space for the third checkpoint: told, and the run ends as if nothing had happened, with the later ones."""
    ranks = campaign.start(run, layout, program=SMALL_DISK, FULL_AFTER="2", FULL_FOR="1")
    well = campaign.expect(ranks.wait() == [0, 0], f"{run}: ended", ranks)
    failed = [event["step"] for event in read_events(run) if event["event"] == "save_failed"] if well else []
    told = "no space left" in ranks.output() and "goes on to its next save" in ranks.output()
    only = 3 * SAVE_EVERY in failed and 4 * SAVE_EVERY not in failed
    well = well and campaign.expect(only and told, f"{run}: told {failed}", ranks)
    return well and campaign.as_undisturbed(run, layout, ranks)


def full_for_records(campaign: Campaign, run: Path, layout: str) -> bool:
    """A disk that takes no record: checkpoints and weights are those of any other run."""
    for name in ("metrics.jsonl", "events.jsonl"):
        (run / name).symlink_to("/dev/full")
    ranks = campaign.start(run, layout)
    well = campaign.expect(ranks.wait() == [0, 0], f"{run}: ended", ranks)
    weights = "export/model.safetensors"
    same = well and (run / weights).read_bytes() == (campaign.undisturbed(layout) / weights).read_bytes()
    return campaign.expect(same and "the run goes on without it" in ranks.output(), f"{run}: weights", ranks)


def host_lost(campaign: Campaign, run: Path, layout: str) -> bool:
    """The agent of one of two hosts is killed, and its processes with it: no new start is needed."""
    settings = (*settings_of(layout), f"checkpoint.local_dir={campaign.folder / 'local-disk'}")
    agents = Agents(2, campaign.folder / "config.yaml", run, *settings)
    at = campaign.random.randint(1, STEPS - 5)
    agents.until(lambda: step_of(run) >= at)
    agents.processes[1].kill()
    struck = datetime.datetime.now(datetime.UTC)
    status = agents.wait(0)
    starts = [event for event in read_events(run) if event["event"] == "start"]
    if status != 0 or len(starts) != 2 or starts[1]["world_size"] != 1:
        campaign.reasons.append(f"{run}: status {status} after {len(starts)} starts\n{agents.output()[-3000:]}")
        return False
    campaign.waits.append((datetime.datetime.fromisoformat(starts[1]["time"]) - struck).total_seconds())
    here, there, first = timeless(run), timeless(campaign.undisturbed(layout)), starts[1]["step"]
    near = first + NEAR  # records of a step each
    far = deviation(here[first:near], there[first:near])
    campaign.deviations.append(far)
    holds = here[:first] == there[:first] and far <= TOLERANCE and deviation(here, there) <= DRIFT
    if not holds or forgotten(run):
        campaign.reasons.append(f"{run}: figures {far:.2g} apart\n{agents.output()[-3000:]}")
    return holds and not forgotten(run)


def deviation(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> float:
    """Largest relative difference of two runs' records."""
    if [record.keys() for record in here] != [record.keys() for record in there]:
        return math.inf
    pairs = [(one[key] or 0.0, other[key] or 0.0) for one, other in zip(here, there, strict=True) for key in one]
    return max(abs(one - other) / max(abs(other), 1e-30) for one, other in pairs)


def nan_skipped(campaign: Campaign, run: Path, layout: str) -> bool:
    """One step's gradient is not finite on one rank: skipped by both, whichever rank it was."""
    runs = [run / "rank-0", run / "rank-1"]
    for rank, place in enumerate(runs):
        ranks = campaign.start(place, layout, "train.steps=12", program=FAULTY, FAULT=f"nan:{rank}:6")
        skips = [event["step"] for event in (read_events(place) if ranks.wait() == [0, 0] else [])
                 if event["event"] == "skipped_step"]  # fmt: skip
        if not campaign.expect(skips == [6], f"{place}: skipped {skips}", ranks):
            return False
    return campaign.expect(timeless(runs[0]) == timeless(runs[1]), f"{run}: the two differ", ranks)


def nan_for_long(campaign: Campaign, run: Path, layout: str) -> bool:
    """Too many such steps: the run ends with status 77, and goes on from before them when the cause is gone."""
    ranks = campaign.start(run, layout, "guard.max_skipped=1", program=FAULTY, FAULT="nan:1:6-7")
    well = campaign.expect(ranks.wait() == [77, 77], f"{run}: no end", ranks)
    return well and campaign.ends_well(run, layout)


def hang(campaign: Campaign, run: Path, layout: str) -> bool:
    """A rank that hangs: named, stacks of all ranks, status 76."""
    ranks = campaign.start(run, layout, "guard.step_timeout=6", program=FAULTY, FAULT="hang:1:11")
    well = campaign.expect(ranks.wait() == [76, 76], f"{run}: no end", ranks)
    told = "rank(s) 1 still in step 11: reading data" in ranks.output() and len(list(run.glob("logs/*stacks*"))) == 2
    return well and campaign.expect(told, f"{run}: not told", ranks) and campaign.ends_well(run, layout)


def struck(number: signal.Signals, statuses: list[int], told: str) -> Callable[[Campaign, Path, str], bool]:
    """The fault of a signal to rank 1 in the midst of a run."""

    def fault(campaign: Campaign, run: Path, layout: str) -> bool:
        ranks = campaign.start(run, layout, "guard.step_timeout=6")
        until(lambda: step_of(run) >= SAVE_EVERY + 2, ranks)
        ranks.signal(number, rank=1)
        found = ranks.wait()
        well = campaign.expect(found == statuses and told in ranks.output(), f"{run}: {found}", ranks)
        return well and campaign.ends_well(run, layout)

    return fault


def shard_deleted(campaign: Campaign, run: Path, layout: str) -> bool:
    """A shard deleted while it is read, and the run stopped: refused in one line, until the shard is back."""
    shards = run / "shards"
    shutil.copytree(campaign.folder / "shards", shards)
    setting = f"data.train={shards / 'train'}"
    ranks = campaign.start(run, layout, setting)
    until(lambda: step_of(run) >= SAVE_EVERY + 2, ranks)
    (shards / "train.bin").rename(shards / "away")
    ranks.signal(signal.SIGTERM, rank=0)
    well = campaign.expect(ranks.wait() == [75, 75], f"{run}: not stopped", ranks)
    ranks = campaign.start(run, layout, setting)
    is_refused = set(ranks.wait()) == {1}
    lines = [line for line in ranks.output().splitlines() if line]
    well = well and campaign.expect(
        is_refused and len(lines) == 1 and "train.bin" in lines[0], f"{run}: not refused", ranks
    )
    (shards / "away").rename(shards / "train.bin")
    return well and campaign.ends_well(run, layout, setting)


FAULTS = {
    "newest checkpoint truncated": damaged(truncate),
    "newest checkpoint with a flipped bit": damaged(flip),
    "newest checkpoint half deleted": damaged(half_delete),
    "disk full while saving": full_disk,
    "disk full for the records": full_for_records,
    "NaN in a gradient of one rank": nan_skipped,
    "NaN in the gradients of one rank, step after step": nan_for_long,
    "a rank that hangs": hang,
    "a rank that is frozen": struck(signal.SIGSTOP, [76, -signal.SIGKILL], "no sign of life from rank(s) 1"),
    "one rank killed": struck(signal.SIGKILL, [76, -signal.SIGKILL], "no sign of life from rank(s) 1"),
    "SIGTERM to one rank": struck(signal.SIGTERM, [75, 75], "start again to go on"),
    "SIGUSR1 to one rank": struck(signal.SIGUSR1, [75, 75], "start again to go on"),
    "a shard deleted in the midst": shard_deleted,
}

BESIDE_FAULTS = {"disk full for one save": full_for_a_while}
HOSTS_LOST = 6


def faults_of(saving: str) -> dict[str, Callable[[Campaign, Path, str], bool]]:
    """Those of a way of saving, by name."""
    return FAULTS | (BESIDE_FAULTS if saving else {})


def main() -> None:
    """Run the campaign and write what was found."""
    args = parse_arguments()
    begin = time.monotonic()
    with scratch(args.keep) as folder:
        make_run(
            folder,
            model={"hidden_size": WIDTH, "num_layers": 4, "ffn_hidden_size": 3 * WIDTH},
            train={"steps": STEPS, "eval_every": 0, "eval_packs": 1},
            checkpoint={"save_every": SAVE_EVERY, "keep_last": 2},
        )
        campaign = Campaign(folder=folder, random=random.Random(args.seed))
        layouts = [", ".join(filter(None, pair)) for pair in itertools.product(LAYOUTS, SAVING)]
        for number, layout in enumerate(layouts):
            if share := args.kills // len(layouts) + (number < args.kills % len(layouts)):
                kill(campaign, layout, share)
        for saving in SAVING:
            layout = ", ".join(filter(None, ("zero3", saving)))
            losses = {f"host lost, time {number}": host_lost for number in range(1, 1 + HOSTS_LOST // len(SAVING))}
            for name, fault in {**faults_of(saving), **losses}.items():
                if args.only and args.only not in name:
                    continue
                run = folder / "zero3" / saving.replace(" ", "-") / name.replace(" ", "-")
                run.mkdir(parents=True)
                campaign.faults += 1
                campaign.tell(layout, name, fault(campaign, run, layout))
    figures = {
        "kills": campaign.kills,
        "kills_while_saving": campaign.kills_while_saving,
        "faults": campaign.faults,
        "lost": sum(not holds for _, _, holds in campaign.rows),
        "largest_deviation_after_host_lost": float(f"{max(campaign.deviations, default=0.0):.2g}"),
        "longest_wait_for_going_on_s": round(max(campaign.waits, default=0.0), 1),
        "minutes": round((time.monotonic() - begin) / 60, 1),
    }
    if args.out:
        table = [
            f"| {layout} | {what} | {'nothing' if holds else '**lost**'} |" for layout, what, holds in campaign.rows
        ]
        lines = ["| layout | what happened | lost |", "|---|---|---|", *table, "", f"`{json.dumps(figures)}`", ""]
        args.out.write_text("\n".join([*head("Kills and faults", "benchmarks.faults"), "", *lines]))
    print_json(figures)
    if campaign.reasons:
        raise UserError(f"{figures['lost']} case(s) lost something; see above")


@contextmanager
def scratch(keep: Path | None) -> Iterator[Path]:
    """A folder for the runs: one that stays, or one that goes."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="times that all processes are killed (default 30)")
    parser.add_argument("--only", help="of the faults, those with this in their name (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--keep", type=Path, help="new folder for the runs (default: a temporary one)")
    parser.add_argument("--out", type=result_path, help="Markdown file to write the result to")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
