"""Jobs of independent parts: dealt to array tasks, MPI ranks and worker processes, each part written once and whole.

A job names its parts, says which are finished, and makes one at a time; nothing else about it depends on who makes
what. So one task, eight array tasks or three MPI ranks write the same bytes, and a job that was killed goes on where it
was: what is finished is kept, what was half written begins anew. A lease on each part keeps two jobs from writing it at
once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt_dist.launch.launchers import TaskPlace, detect_task
from ttt_dist.manifest.problems import Notes, Problems, merge_notes
from ttt_dist.util.console import Progress, print_rank0, warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import holder, lease, lock_name

ProgressCallback = Callable[[float], None]
POLL_SECONDS = 0.2
TOLD = 20  # problems that a rank hands on word for word


@dataclass
class Outcome:
    """What a part came to: its counts, and a line for everything that had to be left out."""

    counts: dict[str, float]
    problems: list[str] = field(default_factory=list)
    was_cached: bool = False
    """It was finished before."""
    notes: Notes = field(default_factory=dict)
    """What was not left out, and is worth a look."""


class PartJob(ABC):
    """A job over parts number 0..num_parts-1; it travels to worker processes before `open` and must be picklable."""

    label: str
    """What it does, for progress: `encoding`."""
    unit: str
    """What it counts on the way: `utterance`."""

    @property
    @abstractmethod
    def num_parts(self) -> int: ...

    @abstractmethod
    def prefix(self, number: int) -> Path:
        """The part's prefix: PREFIX.json is written last and completes it."""

    @abstractmethod
    def amount(self, number: int) -> float:
        """How many units the part has."""

    def open(self) -> None:  # noqa: B027  a job may need nothing
        """Load what all parts need (codec, tokenizer), once in every process that makes parts."""

    @abstractmethod
    def finished(self, number: int) -> Outcome | None:
        """What a finished part came to; None where it is to be made. Raises UserError where other inputs made it."""

    @abstractmethod
    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        """Write the part; `tick` takes the units done since the last call."""


@dataclass(frozen=True)
class TaskShard:
    """Which parts this process looks after (task i of n takes parts i, i + n, ...), and with how many workers."""

    index: int = 0
    size: int = 1
    workers: int = 1
    mpi: bool = False

    def of(self, num_parts: int) -> range:
        """The numbers of this task's parts."""
        return range(self.index, num_parts, self.size)


@dataclass(kw_only=True)
class Totals:
    """What all parts of this task (under MPI: of all ranks) came to."""

    counts: dict[str, float] = field(default_factory=dict)
    parts: int = 0
    num_cached: int = 0
    num_problems: int = 0
    messages: list[str] = field(default_factory=list)
    """The first of the problems, as many as are told one by one."""
    notes: Notes = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        """Count more parts."""
        for name, value in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + value
        self.parts += other.parts
        self.num_cached += other.num_cached
        self.num_problems += other.num_problems
        self.messages += other.messages[: TOLD - len(self.messages)]
        merge_notes(self.notes, other.notes)

    @classmethod
    def of(cls, outcome: Outcome) -> Totals:
        """Those of one part."""
        problems = outcome.problems
        return cls(
            counts=dict(outcome.counts),
            parts=1,
            num_cached=int(outcome.was_cached),
            num_problems=len(problems),
            messages=problems[:TOLD],
            notes=outcome.notes,
        )


def add_arguments(parser: argparse.ArgumentParser, old_names: tuple[str, str] = ("--task", "--tasks")) -> None:
    """`--array-index I --array-size N --workers W`; the first two also by the names that they had before."""
    group = parser.add_argument_group(
        "sharing the work", "under mpirun or srun each rank is a task, without --array-index and --array-size"
    )
    names = {"--array-index": "do the parts of task I, from 0 (SLURM_ARRAY_TASK_ID)", "--array-size": "of N tasks"}
    for (name, told), old, metavar in zip(names.items(), old_names, "IN", strict=True):
        dest = name.strip("-").replace("-", "_")
        group.add_argument(name, type=int, metavar=metavar, help=told)
        group.add_argument(old, type=int, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    group.add_argument("--workers", type=int, default=1, help="processes of this task (default 1)")


def task_shard_of(args: argparse.Namespace) -> TaskShard:
    """The shard that command line or launcher give this process. Raises UserError where they contradict each other."""
    index, size, place = args.array_index, args.array_size, detect_task(os.environ)
    if (index is None) != (size is None):
        raise UserError("--array-index and --array-size: give both, or neither")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: at least 1 is needed")
    if place.size != 1:
        os.environ.setdefault("LOCAL_RANK", str(place.local_rank))  # its GPU
    if size is None:
        return _mpi_shard(place, args.workers) if place.is_mpi else TaskShard(place.rank, place.size, args.workers)
    if place.is_mpi and (index, size) != (place.rank, place.size):
        raise UserError("--array-size under mpirun: the ranks are the tasks; leave --array-index and --array-size out")
    if not 0 <= index < size:
        raise UserError(f"--array-index {index} --array-size {size}: tasks are numbered 0..{size - 1}")
    return TaskShard(index, size, args.workers)


def _mpi_shard(place: TaskPlace, workers: int) -> TaskShard:
    remedy = f"start each process with --array-index {place.rank} --array-size {place.size or 'N'}"
    try:
        from mpi4py import MPI  # joins the others: only where mpirun has started several
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"mpirun has started this process, and MPI cannot be used ({reason}); install it, or {remedy}"
        ) from None
    world = MPI.COMM_WORLD
    if place.size not in (0, world.size) or place.rank != world.rank:
        raise UserError(
            f"the launcher has started process {place.rank} of {place.size or 'N'}, which MPI takes for {world.rank} of "
            f"{world.size}: mpi4py goes with another MPI; take that one's mpirun, or {remedy}"
        )
    os.environ["RANK"] = str(world.rank)  # the console talks on rank 0 alone
    return TaskShard(world.rank, world.size, workers, mpi=True)


def run_parts(job: PartJob, shard: TaskShard, problems: Problems) -> Totals:
    """Make this shard's parts and add up. Problems are told as parts finish and counted in `problems`.

    Under MPI all ranks return what all of them came to, and fail where one did. Raises UserError where a part is being
    written by another job; the others are done even then.
    """
    if not shard.mpi:
        return _run_shard(job, shard, problems)
    return _together(lambda: _run_shard(job, shard, problems), problems)


def _run_shard(job: PartJob, shard: TaskShard, problems: Problems) -> Totals:
    numbers = shard.of(job.num_parts)
    totals = Totals()
    with Progress(sum(map(job.amount, numbers)), job.label, job.unit) as progress:
        held = _make_all(job, shard, numbers, progress, lambda outcome: _collect(outcome, totals, problems))
        # Whoever held a part may have finished it meanwhile, or died.
        held = (
            _make_all(job, shard, held, progress, lambda outcome: _collect(outcome, totals, problems)) if held else []
        )
    if held:
        first = job.prefix(held[0])
        raise UserError(
            f"{first}: {len(held)} part(s) are being written by {holder(first)}; wait for that job, then run this again"
        )
    return totals


def _collect(outcome: Outcome, totals: Totals, problems: Problems) -> None:
    totals.add(Totals.of(outcome))
    for problem in outcome.problems:
        problems.report(problem)


def _make_all(
    job: PartJob, shard: TaskShard, numbers: Iterable[int], progress: Progress, collect: Callable[[Outcome], None]
) -> list[int]:
    """Make parts, here or by workers; returns those that another job holds."""
    numbers = list(numbers)
    if min(shard.workers, len(numbers)) > 1:
        results = _by_workers(job, numbers, shard.workers, progress)
    else:
        results = _here(job, numbers, progress)
    held = []
    for number, outcome in results:
        if outcome is None:
            held.append(number)
        else:
            collect(outcome)
            if outcome.was_cached:
                progress.skip(job.amount(number))
    return held


def _here(job: PartJob, numbers: list[int], progress: Progress) -> Iterator[tuple[int, Outcome | None]]:
    if numbers:
        job.open()
    for number in numbers:
        yield number, make_part(job, number, progress.advance)


def make_part(job: PartJob, number: int, tick: ProgressCallback) -> Outcome | None:
    """The outcome of one part, made now where it was not finished; None where another job is writing it."""
    done = job.finished(number)
    if done is None or lock_name(job.prefix(number)).exists():  # the lock: of a job killed at the last moment, perhaps
        with lease(job.prefix(number)) as ours:
            if not ours:
                return None
            done = job.finished(number)  # its last holder may have finished it while we came
            if done is None:
                return job.make(number, tick)
    done.was_cached = True
    return done


class _Worker:
    """What a worker process holds: its opened job, and the counter that its parent shows."""

    job: PartJob
    done: Any


def _start_worker(job: PartJob, done: Any, order: Any) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    with order.get_lock():
        os.environ["LOCAL_RANK"] = str(int(os.environ.get("LOCAL_RANK", "0")) + order.value)  # its GPU
        order.value += 1
    _Worker.job, _Worker.done = job, done
    job.open()


def _follow_parent() -> None:
    """End with the parent: a worker that outlives a killed job would hold its leases."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int) -> Outcome | None:
    def tick(amount: float) -> None:
        with _Worker.done.get_lock():
            _Worker.done.value += amount

    return make_part(_Worker.job, number, tick)


def _by_workers(
    job: PartJob, numbers: list[int], workers: int, progress: Progress
) -> Iterator[tuple[int, Outcome | None]]:
    """Outcomes as parts finish. Workers are fresh processes: nothing of this one leaks into what they write."""
    context = multiprocessing.get_context("spawn")
    done, order = context.Value("d", 0.0), context.Value("i", 0)
    shown = 0.0
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _start_worker, (job, done, order))
    try:
        waiting: dict[Future[Outcome | None], int] = {pool.submit(_work, number): number for number in numbers}
        while waiting:
            finished, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress.advance(done.value - shown)
            shown = done.value
            for future in finished:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended (see above; out of memory?): finished parts are kept, run this again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _together(work: Callable[[], Totals], problems: Problems) -> Totals:
    """Run `work` on every MPI rank and add up on rank 0, which goes on alone: the others end here.

    Raises UserError on rank 0 where a rank failed.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    totals, failure = Totals(), None
    try:
        totals = work()
    except UserError as error:
        failure = str(error)
    except BaseException:
        traceback.print_exc()
        world.Abort(1)
    ranks: list[tuple[Totals, str | None]] | None = world.gather((totals, failure))
    if ranks is None:
        sys.exit(0)  # rank 0 has the exit status: mpirun would kill it on another's
    for other, _ in ranks[1:]:
        totals.add(other)
        for message in other.messages:
            problems.report(message)
        problems.count += other.num_problems - len(other.messages)
    if failed := [failure for _, failure in ranks if failure]:
        raise UserError(failed[0])
    return totals


def tell(out: Path, totals: Totals, what: str, shard: TaskShard, num_parts: int) -> None:
    """The line that ends a job: what there is now, and whose shard it was."""
    cached = f"; {totals.num_cached} of {totals.parts} parts were there already" if totals.num_cached else ""
    mine = f" (task {shard.index} of {shard.size}: {totals.parts} of {num_parts} parts)" if _is_array(shard) else ""
    print_rank0(f"{out}: {what}{cached}{mine}")


def tell_notes(out: Path, totals: Totals) -> None:
    """A line for each thing that is worth a look."""
    for reason, tally in sorted(totals.notes.items()):
        warn(f"{out}: kept, but worth a look: {tally.count:,} with {reason}; the first is {tally.places[0]}")


def _is_array(shard: TaskShard) -> bool:
    return shard.size > 1 and not shard.mpi
