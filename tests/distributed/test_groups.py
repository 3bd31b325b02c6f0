"""Process groups are left for good: a run of many layouts in one process must not grow."""

import os

from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed

LAYOUT = Layout(dp=2, tensor=2)


def threads_after(rounds: int) -> list[int]:
    """Threads of this process after each time that the groups were made and left."""
    from ttt_dist.parallel import groups

    counts = []
    for _ in range(rounds):
        groups.join(LAYOUT.mesh())
        groups.leave()
        counts.append(len(os.listdir("/proc/self/task")))
    return counts


def test_the_threads_of_left_groups_end() -> None:
    (by_rank,) = run_distributed([(threads_after, (3,))], LAYOUT.world_size)
    for counts in by_rank:
        assert counts == [counts[0]] * 3
