"""What one rank does at its start, in a process of its own: everything of train.py before the process group, and its first packs."""

import gc
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tools.simulate.counting import COUNTER, Calls, bytes_read, forget_peak, handles, resident_mb
from ttt_dist.checkpoint.restore import find_candidates
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.loader import PackLoader, open_loaders
from ttt_dist.data.sources import PackReader
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.training.plan import check_of, prepare
from ttt_dist.util.errors import UserError

LOCAL_SIZE = 8
NUM_READS = 60  # packs read once more: three times the shards that stay open


@dataclass
class Phase:
    """What a part of a rank's work took."""

    seconds: float
    cpu_s: float
    calls: Calls
    bytes_read: int


class Meter:
    """Measures one phase after the other."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._calls, self._bytes = COUNTER.now(), bytes_read()
        self._seconds, self._cpu = time.perf_counter(), time.process_time()

    def phase(self) -> Phase:
        """What has been done since the phase before."""
        seconds, cpu = time.perf_counter() - self._seconds, time.process_time() - self._cpu
        found = Phase(seconds, cpu, COUNTER.now().since(self._calls), bytes_read() - self._bytes)
        self._start()
        return found


def dist_info(rank: int, world_size: int) -> DistInfo:
    """A rank of machines with LOCAL_SIZE processes each."""
    local = min(LOCAL_SIZE, world_size)
    return DistInfo(rank=rank, world_size=world_size, local_rank=rank % local, local_size=local, host=rank // local)


def start_rank(config: Recipe, folder: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Start, read the first batch and some packs more: plain values."""
    os.environ["RANK"] = str(rank)  # who may talk
    info = dist_info(rank, world_size)
    gc.collect()
    COUNTER.watch(folder)
    forget_peak()
    before = resident_mb()
    meter = Meter()
    loader, _ = open_loaders(config, rank, world_size, "nothing")
    opened = meter.phase()
    loader.sources.require_files(check_of(info))
    checked, opened_mb = meter.phase(), resident_mb(peak=True) - before
    candidates = find_candidates(config, None, trusts_files=True)
    if info.is_first:
        candidates = find_candidates(config, None)  # what `agree` does for all
    resumed = meter.phase()
    # Elsewhere: no disk has room for the checkpoints.
    plan = prepare(config, info, is_elsewhere=True, trusts_files=True, candidates=candidates)
    started = meter.phase()
    [first, *_] = loader.step(0)
    batch = meter.phase()
    return {
        "rank": rank,
        "loader": asdict(opened),
        "check": asdict(checked),
        "resume": asdict(resumed),
        "start": asdict(started),
        "batch": asdict(batch),
        "mb": opened_mb,
        "batch_mb": resident_mb(peak=True) - before,
        "handles": handles(),
        "resumes_from": None if plan.start is None else plan.start.name,
        "tokens": int(first.input_ids.numel()),
        "packs": [place.pack for place in loader.sample_indices(0)],
        **read_packs(loader),
    }


def read_packs(loader: PackLoader) -> dict[str, float]:
    """Milliseconds of a pack: from shards never read before, once more in the same order, and from one that is open."""
    reader = next(iter(loader.sources.readers.values()))
    packs = [place.pack for step in range(1, NUM_READS) for place in loader.sample_indices(step)][:NUM_READS]
    first = [_ms(reader, pack) for pack in packs]
    again = [_ms(reader, pack) for pack in packs]
    kept = [_ms(reader, packs[-1]) for _ in packs]
    found = {"first": median(first), "again": median(again), "open": median(kept)}
    return {f"pack_{name}_ms": value for name, value in found.items()} | {"open_handles": handles()}


def _ms(reader: PackReader, pack: int) -> float:
    start = time.perf_counter()
    reader[pack]
    return 1e3 * (time.perf_counter() - start)


def each_rank(config: Recipe, folder: Path, ranks: Sequence[int], world_size: int) -> Iterator[dict[str, Any]]:
    """`start_rank` of each, one after the other, each in a process that is forked for it."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for rank in ranks:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_answer, args=(there, deepcopy(config), folder, rank, world_size))
        child.start()
        there.close()
        try:
            told = json.loads(here.recv())
        except EOFError:
            raise RuntimeError(f"rank {rank} ended without an answer") from None
        finally:
            child.join()
        if "error" in told:
            raise UserError(f"rank {rank}: {told['error']}")
        yield told


def _answer(there: Connection, config: Recipe, folder: Path, rank: int, world_size: int) -> None:
    try:
        told = start_rank(config, folder, rank, world_size)
    except UserError as error:
        told = {"error": str(error)}
    there.send(json.dumps(told))
