"""What a run says where a shard is gone or a rank is lost, and what finding out asks of the others."""

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tools.simulate.ranks import dist_info
from ttt_dist.config.pipeline import Recipe
from ttt_dist.data.loader import open_loaders
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.training.plan import check_of
from ttt_dist.training.watchdog import explained_once
from ttt_dist.util.console import print_rank0
from ttt_dist.util.errors import UserError

SIGN_S = 1.0  # between two signs of life; training gives one in 5 s
ASKING = 64  # ranks that ask at once; each of the others asks as they do


def lose_a_shard(config: Recipe, shards: Path, world_size: int) -> dict[str, Any]:
    """Take one .bin away: what rank 0 says at the start, and what a rank says that comes to read it."""
    print_rank0("\nFailures")
    gone = sorted(shards.glob("train-*.bin"))[-1]
    aside = gone.rename(gone.with_suffix(".aside"))
    loader, _ = open_loaders(config, 0, world_size, "nothing")
    reader = loader.sources.readers["train"]
    start = time.perf_counter()
    told = [_told(lambda: loader.sources.require_files(check_of(dist_info(0, world_size))))]
    seconds = time.perf_counter() - start
    told.append(_told(lambda: reader[len(reader) - 1]))
    aside.rename(gone)
    print_rank0(f"a shard is gone, told by rank 0 at the start ({seconds:.2f} s), and by whoever comes to read it:")
    for line in told:
        print_rank0(f"  {line}")
    return {"lost_shard_s": round(seconds, 3), "lost_shard_named": sum(str(gone) in line for line in told)}


def _told(action: Any) -> str:
    try:
        action()
    except UserError as error:
        return str(error)
    return "(nothing)"


class Counting:
    """A connection to rank 0's store that counts what is asked by it."""

    def __init__(self, port: int) -> None:
        self._store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        self.requests += 1
        return getattr(self._store, name)


def lose_a_rank(world_size: int) -> dict[str, Any]:
    """All ranks but the last give signs of life to rank 0's store; ASKING of them ask who does not, at the same time."""
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True, timeout=timedelta(seconds=60), wait_for_workers=False)
    lost, ended = world_size - 1, threading.Event()
    for rank in range(world_size):
        server.set(f"life/{rank}", "0")
        server.set(f"mark/{rank}", "1 step 1: forward and backward")

    def live() -> None:
        number = 0
        while not ended.wait(SIGN_S / 2):
            number += 1
            for rank in range(lost):
                server.set(f"life/{rank}", str(number))

    stores, answers = [Counting(port) for _ in range(min(ASKING, lost))], set()
    living = threading.Thread(target=live)
    asking = [
        threading.Thread(target=lambda store: answers.add(explained_once(store, world_size, 3 * SIGN_S)), args=(store,))
        for store in stores
    ]
    start = time.perf_counter()
    for thread in (living, *asking):
        thread.start()
    for thread in asking:
        thread.join()
    seconds = time.perf_counter() - start
    ended.set()
    living.join()
    requests = sorted(store.requests for store in stores)
    print_rank0(
        f"rank {lost} is lost, told to {len(stores)} ranks that ask at once after {seconds:.1f} s "
        f"({requests[0]} to {requests[-1]} requests of each): {' / '.join(sorted(answers))}"
    )
    return {"fault_requests_per_rank": requests[len(requests) // 2], "fault_s": round(seconds, 2)}
