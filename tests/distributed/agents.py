"""A run whose hosts, each with an agent of its own, are all this machine."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.distributed.small_run import ROOT, TRAIN, environment
from ttt_dist.launch.rendezvous import free_port


class Agents:
    """`tools/elastic.py` once for each of several hosts, all of which are this machine."""

    def __init__(self, number: int, config: Path, run: Path, *arguments: str, options: Sequence[str] = ()) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.log, self.processes = run / "output.txt", []
        shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        train = [TRAIN, "--config", str(config), f"run_dir={run}", *arguments]
        command = [sys.executable, "tools/elastic.py", *options, *train]
        with self.log.open("w") as log:
            for host in range(number):
                own = environment(**shared, RANK=str(host), OMP_NUM_THREADS="1")
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log))

    def wait(self, host: int) -> int:
        try:
            return self.processes[host].wait(timeout=240)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert self.processes[0].poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def workers(self, host: int) -> list[int]:
        """Processes that an agent has started."""
        pid = self.processes[host].pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def output(self) -> str:
        return self.log.read_text()
