"""A real SLURM on this machine, for as long as a test module: one controller and two node daemons, n1 and n2.

All their files lie in a temporary folder. They run in process and mount namespaces of their own, so that nothing outlives
them, and names of hosts and /run are private to them and to their jobs.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.cluster.needs import alone_in_namespaces, end, need, need_namespaces
from tests.distributed.small_run import ROOT, environment
from ttt_dist.launch.rendezvous import free_port

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=120
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node}-{next_node}] CPUs=4
PartitionName=main Nodes=ALL Default=YES State=UP
"""
START = """\
set -e
cd {folder}
mount --bind hosts /etc/hosts
mount -t tmpfs tmpfs /run
munged --foreground --force --num-threads=2 --key-file=$PWD/munge.key --socket=$PWD/munge.socket \\
    --pid-file=$PWD/munged.pid --log-file=$PWD/munged.log --seed-file=$PWD/munged.seed &
slurmctld -D -c &
slurmd -D -N n1 &
slurmd -D -N n2 &
wait
"""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Slurm:
    """The cluster's commands, as a user has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str, **variables: str) -> str:
        """Output of a command of SLURM."""
        done = subprocess.run(
            command, cwd=ROOT, env=environment(**self._variables, **variables), text=True, capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> "Job":
        """Queue a script of slurm/ on cores that fit this machine; its log goes to the folder."""
        log = self.folder / f"{Path(script).stem}-%A_%a.log"
        small = ("--parsable", "--cpus-per-task=1", f"--output={log}", *options)
        return Job(self, int(self.run("sbatch", *small, f"slurm/{script}", *arguments, **variables)))


class Job:
    """A job, or an array of them."""

    def __init__(self, slurm: Slurm, number: int) -> None:
        self.slurm, self.number = slurm, str(number)

    def facts(self, key: str) -> list[str]:
        """What `scontrol show job` says under `key`: one value, or one per task of an array."""
        return re.findall(rf"\b{key}=(\S*)", self.slurm.run("scontrol", "--oneliner", "show", "job", self.number))

    @property
    def states(self) -> set[str]:
        return set(self.facts("JobState"))

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.slurm.folder.glob(f"*-{self.number}_*.log")))

    def wait(self, timeout_s: float = 300) -> set[str]:
        """States in which its tasks end."""
        wait_until(lambda: self.states <= OVER, self, timeout_s)
        return self.states

    def wait_until_queued_again(self, restarts: int) -> None:
        """Until it is pending after so many restarts."""
        wait_until(lambda: self.states == {"PENDING"} and self.facts("Restarts") == [str(restarts)], self)

    def change(self, **values: str) -> None:
        """`scontrol update`."""
        self.slurm.run(
            "scontrol", "update", f"JobId={self.number}", *(f"{key}={value}" for key, value in values.items())
        )

    def start_again_soon(self, **changes: str) -> None:
        """SLURM waits two minutes before it starts a job again, as a start in the second of its end fails (revoked
        credential); three seconds do. `changes` of the job come first."""
        self.change(**changes, StartTime="now+3")

    def signal(self, name: str) -> None:
        """To the processes of its steps."""
        self.slurm.run("scancel", f"--signal={name}", self.number)

    def process(self, rank: int) -> psutil.Process:
        """The process of one rank of its step."""
        wanted = {"SLURM_JOB_ID": self.number, "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "python" in process.name() and wanted.items() <= process.environ().items():
                    return process
        raise AssertionError(f"job {self.number} has no rank {rank}:\n{self.log}")

    @property
    def minutes(self) -> int:
        """Whole minutes that it has been running."""
        hours, minutes, _ = map(int, self.facts("RunTime")[0].split(":"))
        return 60 * hours + minutes

    def cancel(self) -> None:
        self.slurm.run("scancel", self.number)


def wait_until(condition: Callable[[], bool], job: Job, timeout_s: float = 300) -> None:
    """Poll; AssertionError with the job's log where it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, (
            f"job {job.number} is {job.states} after {timeout_s:g} s:\n{job.log[-6000:]}"
        )
        time.sleep(0.3)


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """A cluster whose two nodes are idle; skips the test where there can be none."""
    need("slurmctld", "slurmd", "munged", "sbatch", "unshare", "setpriv")
    need_namespaces()
    _configure(folder)
    slurm = Slurm(folder)
    with (folder / "daemons.log").open("w") as log:
        daemons = subprocess.Popen(
            [*alone_in_namespaces("mount"), "bash", str(folder / "start.sh")],
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_until_idle(slurm, daemons)
        yield slurm
    finally:
        end(daemons)


def _configure(folder: Path) -> None:
    host, port = socket.gethostname(), free_port(2)
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, host=host, controller=free_port(), node=port, next_node=port + 1)
    )
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} n1\n127.0.0.2 n2\n")
    (folder / "start.sh").write_text(START.format(folder=folder))


def _wait_until_idle(slurm: Slurm, daemons: "subprocess.Popen[bytes]") -> None:
    deadline, state = time.monotonic() + 60, ""
    while state.split() != ["idle"]:
        logs = [path.read_text()[-2000:] for path in slurm.folder.glob("*.log")]
        assert daemons.poll() is None and time.monotonic() < deadline, f"the cluster is {state!r}:\n" + "\n".join(logs)
        time.sleep(0.2)
        try:
            state = slurm.run("sinfo", "--noheader", "--format=%T")
        except AssertionError as error:  # no controller yet
            state = str(error)
