"""`run_distributed`: run functions in processes that form a gloo group, and bring home what they return or raise.

One set of processes runs all cases. Each must leave its groups again (`groups.leave`): the threads of a gloo group take
time for as long as it is there.
"""

import os
import queue
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

from tests.distributed import warm
from ttt_dist.launch.rendezvous import free_port

Case = Callable[..., Any]
WAITING = object()


def run_distributed(
    cases: Sequence[tuple[Case, tuple[Any, ...]]], world_size: int, timeout_s: float = 300, is_fresh: bool = False
) -> list[list[Any]]:
    """Run `function(*arguments)` of every case on `world_size` processes; returns [case][rank].

    `is_fresh`: they are no forks, as what a C library reads of the environment when it is loaded matters.

    Functions and results must be picklable. The first exception of any rank ends them all and is raised here as
    AssertionError with the rank, the case and its traceback.
    """
    context: Any = get_context("spawn") if is_fresh else warm.context()
    results = context.Queue()
    port = free_port()
    workers = [
        context.Process(
            target=_worker, args=(rank, world_size, port, list(cases), results, dict(os.environ)), daemon=True
        )
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    try:
        return _collect(results, workers, len(cases), world_size, timeout_s)
    finally:
        for worker in workers:
            worker.join(timeout=20)
            if worker.is_alive():
                worker.kill()


def _collect(
    results: Any, workers: Sequence[Any], num_cases: int, world_size: int, timeout_s: float
) -> list[list[Any]]:
    table: list[list[Any]] = [[WAITING] * world_size for _ in range(num_cases)]
    waiting, last_news = num_cases * world_size, time.monotonic()
    while waiting:
        try:
            case, rank, value, failure = results.get(timeout=5)
        except queue.Empty:
            dead = [i for i, worker in enumerate(workers) if worker.exitcode not in (None, 0)]
            if dead or time.monotonic() > last_news + timeout_s:
                _kill(workers)
                place = next((number, row) for number, row in enumerate(table) if any(v is WAITING for v in row))
                ranks = [rank for rank, value in enumerate(place[1]) if value is WAITING]
                what = f"rank(s) {dead} died" if dead else f"rank(s) {ranks} hang"
                raise AssertionError(f"{what} in case {place[0]}") from None
            continue
        if failure is not None:
            # What one rank meets may come of another one's end.
            ended = {
                i: worker.exitcode for i, worker in enumerate(workers) if worker.exitcode is not None and i != rank
            }
            _kill(workers)
            raise AssertionError(f"rank {rank}, case {case}{f' (ended: {ended})' if ended else ''}:\n{failure}")
        table[case][rank], last_news = value, time.monotonic()
        waiting -= 1
    return table


def _kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.kill()


def _worker(
    rank: int,
    world_size: int,
    port: int,
    cases: list[tuple[Case, tuple[Any, ...]]],
    results: Any,
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    from ttt_dist.launch.process_group import (
        current_dist_info,
        init_process_group,
        leave_process_group,
        prepare_process,
    )

    number = -1
    try:
        prepare_process(world_size)
        init_process_group(current_dist_info())
        for number, (function, arguments) in enumerate(cases):
            results.put((number, rank, function(*arguments), None))
        leave_process_group()
    except BaseException:
        results.put((number, rank, None, traceback.format_exc()))
        sys.stdout.flush()
        raise
