"""How long something takes on the device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.setting import Setting


def milliseconds(run: Callable[[], Any], setting: Setting, repeat: int = 5, warm_up: int = 2) -> float:
    """Median of `repeat` runs, each waited for."""
    times = []
    for _ in range(warm_up + repeat):
        setting.wait()
        begin = time.perf_counter()
        run()
        setting.wait()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[warm_up:])
