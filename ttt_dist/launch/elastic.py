"""Going on without a new start: an agent on each host starts the run's processes, and starts them again on what is left.

Agents talk through a store that the first one keeps. Each gives a sign of life; the first one also decides, in rounds: which
hosts take part, when a round is over, and what follows. A round ends where a process fails or a host is silent: the others'
processes are ended, and the next round begins on as many hosts as the run can be divided over, those that failed last being
taken last, those whose device computes wrongly not at all. Its processes go on from the newest checkpoint, as any start does;
the loss of a step is the same in any layout.

torch's elastic agent is not used: it leaves the processes of a killed agent running, always takes all hosts, and does not
hear of a host that falls silent while the others' processes wait for it (docs/log.md).
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from ttt_dist.launch.rendezvous import free_port
from ttt_dist.util.console import print_error, print_rank0, warn
from ttt_dist.util.errors import LostProcessError, OwnDeviceError, StopRequestedError, UserError, first_line

TICK_S, BEAT_S = 0.2, 1.0
DEAD_S = 10.0  # without a sign of life
CUT_OFF_S = 30.0  # without an answer from the store
GRACE_S = 5.0  # for processes to end by themselves once their round is over
STORE_TIMEOUT = timedelta(seconds=10)
LOST, STOPPED, BAD_DEVICE = LostProcessError.status, StopRequestedError.status, OwnDeviceError.status
ASKED = "asked to stop"  # the agents' store has it once one of them has been
FINAL = (77, 1, 2)  # of a process that would end alike again
PR_SET_PDEATHSIG = 1

Usable = Callable[[int], bool]


@dataclass(frozen=True)
class Plan:
    """What the first agent has decided."""

    round: int
    hosts: tuple[int, ...]
    """Numbers of the agents whose processes take part, in order of their ranks."""
    is_over: bool = False
    """The round's processes are to end."""
    outcome: int | None = None
    """Exit status of the whole."""


def choose_hosts(alive: Sequence[int], failures: dict[int, int], most: int, usable: Usable) -> tuple[int, ...]:
    """As many hosts as the run can use, those that have failed least; none where it can use none of the possible numbers."""
    by_trust = sorted(alive, key=lambda host: (failures.get(host, 0), host))
    number = next((number for number in range(min(most, len(alive)), 0, -1) if usable(number)), 0)
    return tuple(sorted(by_trust[:number]))


def worst(statuses: Sequence[int]) -> int:
    """The status that says most of what went wrong: a mistake, a signal, a lost process, a stop, nothing."""
    signals = [status for status in statuses if status >= 128 or status < 0]
    for status in (*FINAL, *signals, BAD_DEVICE, LOST, STOPPED):
        if status in statuses:
            return 128 - status if status < 0 else status
    return next((status for status in statuses if status), 0)


def is_killed(status: int) -> bool:
    """Whether a process was ended by a signal, but for an abort: NCCL lets every process abort whose neighbour has gone."""
    return status not in (-signal.SIGABRT, 128 + signal.SIGABRT) and (status < 0 or status >= 128)


def note_bad(path: Path | None, names: list[str]) -> None:
    """Add hosts to the file of those that had better not be used again."""
    if path is not None and names:
        with contextlib.suppress(OSError), path.open("a") as file:
            file.writelines(f"{name}\n" for name in names)


def host_name() -> str:
    """This host, as SLURM calls it where it is there."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class Coordinator:
    """What the first agent decides, from what all of them have told the store."""

    def __init__(self, store: dist.Store, num_hosts: int, most: int, usable: Usable, max_restarts: int, join_s: float,
                 bad_hosts: Path | None) -> None:  # fmt: skip
        self.store, self.num_hosts, self.most, self.usable = store, num_hosts, most, usable
        self.max_restarts, self.bad_hosts = max_restarts, bad_hosts
        self.plan: Plan | None = None
        self.failures: dict[int, int] = {}
        self.broken: dict[int, str] = {}
        """Names of hosts with a device that computes wrongly: what it makes of the weights is worse than no host."""
        self._join_until = time.monotonic() + join_s
        self._seen: dict[int, tuple[bytes, float]] = {}

    def tend(self) -> None:
        """Look at what agents have told, and decide what is to be decided."""
        alive = self._alive()
        if self.plan is None:
            if len(alive) == self.num_hosts or time.monotonic() > self._join_until:
                self._begin(alive, 0)
        elif self.plan.outcome is None:
            dead = [host for host in self.plan.hosts if host not in alive]
            reports = {host: report for host in self.plan.hosts if (report := self._report(host)) is not None}
            failing = dead or any(worst(report) for report in reports.values()) or self._said("failing")
            if failing and not self.plan.is_over:
                self._put(replace(self.plan, is_over=True))
            if all(host in reports or host in dead for host in self.plan.hosts):
                self._decide(alive, dead, reports)

    def _decide(self, alive: list[int], dead: list[int], reports: dict[int, list[int]]) -> None:
        assert self.plan is not None
        status = worst([*(status for report in reports.values() for status in report), *([LOST] if dead else [])])
        if status in (0, *FINAL) or (status == STOPPED and not dead):
            self._put(replace(self.plan, outcome=status))
            return
        broken = [host for host, report in reports.items() if BAD_DEVICE in report]
        killed = [host for host, report in reports.items() if any(map(is_killed, report)) and host not in broken]
        for host in (*dead, *killed, *broken):
            self.failures[host] = self.failures.get(host, 0) + 1
        self.broken |= {host: self._name(host) for host in broken}
        note_bad(self.bad_hosts, [self._name(host) for host in (*dead, *killed, *broken)])
        told = {"lost {}": dead, "a process on {} was killed": killed, "a device of {} computes wrongly": broken}
        what = "; ".join(text.format(self._names(hosts)) for text, hosts in told.items() if hosts) or "lost a process"
        if self.store.check([ASKED]):
            warn(f"{what}; asked to stop, so the processes are not started again")
            self._put(replace(self.plan, outcome=status))
        elif self.plan.round == self.max_restarts:
            warn(f"{what}; the processes were started again {self.max_restarts} times, which is enough")
            self._put(replace(self.plan, outcome=status))
        else:
            warn(what)
            self._begin(alive, self.plan.round + 1)

    def _begin(self, alive: list[int], number: int) -> None:
        # Another machine may have taken the number of one that was left out.
        sound = [host for host in alive if self.broken.get(host) != self._name(host)]
        bad = ", ".join(name for host, name in sorted(self.broken.items()) if host not in sound)
        hosts = choose_hosts(sound, self.failures, self.most, self.usable)
        left_out = f"{bad} left out (a device computes wrongly)" if bad else ""
        if not hosts:
            remedy = f"; {left_out}: start again on others in place of these" if left_out else ""
            warn(f"{len(sound)} host(s) are left, over which the run cannot be divided{remedy}")
            would_do = left_out and choose_hosts(alive, self.failures, self.most, self.usable)
            self._put(Plan(number, (), outcome=BAD_DEVICE if would_do else LOST))
            return
        spare = [host for host in sound if host not in hosts]
        stand_by = f"{self._names(spare)} stand(s) by" if spare else ""
        print_rank0("; ".join(filter(None, (f"start {number + 1}: on {self._names(hosts)}", stand_by, left_out))))
        self._put(Plan(number, hosts))

    def _put(self, plan: Plan) -> None:
        self.plan = plan
        self.store.set("plan", json.dumps(asdict(plan)))

    def _alive(self) -> list[int]:
        now = time.monotonic()
        for host in range(self.num_hosts):
            beat = self.store.get(f"beat/{host}") if self.store.check([f"beat/{host}"]) else None
            if beat is not None and self._seen.get(host, (b"", 0.0))[0] != beat:
                self._seen[host] = (beat, now)
        return [host for host, (_, since) in sorted(self._seen.items()) if now - since < DEAD_S]

    def _said(self, key: str) -> bool:
        assert self.plan is not None
        return self.store.check([f"{key}/{self.plan.round}"])

    def _report(self, host: int) -> list[int] | None:
        assert self.plan is not None
        key = f"report/{self.plan.round}/{host}"
        return list(json.loads(self.store.get(key))) if self.store.check([key]) else None

    def _names(self, hosts: Iterable[int]) -> str:
        return ", ".join(map(self._name, hosts))

    def _name(self, host: int) -> str:
        return str(json.loads(self.store.get(f"host/{host}"))[0])


@dataclass(kw_only=True)
class Agent:
    """One host's part: starts processes as the plan says, and reports how they ended."""

    number: int
    store: dist.Store
    address: str
    """At which other hosts reach this one."""
    command: list[str]
    num_processes: int
    bad_hosts: Path | None = None
    coordinator: Coordinator | None = None
    """On the first host."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _round: int = -1
    _end: float | None = None
    """When processes that are to end are killed."""
    _ended_here: set[int] = field(default_factory=set)
    _asked: set[int] = field(default_factory=set)
    """Signals to stop that have come."""
    _has_reported: bool = False
    _beats: int = 0
    _last_contact: float = field(default_factory=time.monotonic)
    _first_host: str = ""

    def run(self) -> int:
        """Until the run has come to its end; exit status. Signals to stop are handed on to the processes."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda received, _: self._hand_on(received))
        try:
            self.store.set(f"host/{self.number}", json.dumps([host_name(), self.address]))
            self._miss(self._plan())
            last_beat = 0.0
            threading.Thread(target=self._end_where_cut_off, daemon=True).start()
            while True:
                self._last_contact = time.monotonic()
                if time.monotonic() > last_beat + BEAT_S:
                    last_beat, self._beats = time.monotonic(), self._beats + 1
                    self.store.set(f"beat/{self.number}", str(self._beats))
                if self._asked:
                    self.store.set(ASKED, str(self.number))
                if self.coordinator is not None:
                    self.coordinator.tend()
                plan = self._plan()
                if plan is not None:
                    if plan.outcome is not None:
                        return plan.outcome
                    self._follow(plan)
                time.sleep(TICK_S)
        except RuntimeError as error:
            note_bad(self.bad_hosts, [self._first_host] if self._first_host else [])
            raise LostProcessError(
                f"the agent of the first host ({self._first_host}) cannot be reached ({first_line(error)})"
            ) from None
        finally:
            self._kill()
            if self.coordinator is not None:
                time.sleep(2 * TICK_S + BEAT_S)  # the others read the outcome in this store

    def _end_where_cut_off(self) -> None:
        """In a thread: a store on a host that cannot be reached any more may leave a question unanswered for ever."""
        while time.monotonic() < self._last_contact + CUT_OFF_S:
            time.sleep(BEAT_S)
        print_error(f"no answer from the agent of the first host ({self._first_host}) for {CUT_OFF_S:g} s")
        os._exit(LOST)  # and with this process those that it has started

    def _plan(self) -> Plan | None:
        if not self.store.check(["plan"]):
            return None
        values = json.loads(self.store.get("plan"))
        self._first_host = self._first_host or json.loads(self.store.get("host/0"))[0]
        return Plan(values["round"], tuple(values["hosts"]), values["is_over"], values["outcome"])

    def _miss(self, plan: Plan | None) -> None:
        """Report the processes of a round that has begun with another agent in this one's place as lost."""
        if plan is not None and self.number in plan.hosts:
            self._round, self._has_reported = plan.round, True
            self.store.set(f"report/{plan.round}/{self.number}", json.dumps([LOST]))

    def _follow(self, plan: Plan) -> None:
        if self.number not in plan.hosts:
            return
        if plan.round != self._round:
            self._kill()
            if self._asked:  # between two rounds
                self._miss(plan)
            else:
                self._start(plan)
            return
        # Whom this agent has killed is not to blame for it, nor who was not far enough to hear a signal to stop.
        ended_by = {-number for number in self._asked}
        statuses = [
            LOST if one.pid in self._ended_here or one.poll() in ended_by else one.poll() for one in self._processes
        ]
        if any(statuses) or plan.is_over:
            if any(statuses):
                self.store.set(f"failing/{plan.round}", str(self.number))
            self._end = self._end or time.monotonic() + GRACE_S
            if time.monotonic() > self._end:
                self._kill()
        if None not in statuses and not self._has_reported:
            self._has_reported = True
            self.store.set(f"report/{plan.round}/{self.number}", json.dumps(statuses))

    def _start(self, plan: Plan) -> None:
        place, key = plan.hosts.index(self.number), f"port/{plan.round}"
        if place == 0 and not self.store.check([key]):
            self.store.set(key, str(free_port()))
        if not self.store.check([key]):
            return  # until the first host has said which
        self._round, self._end, self._has_reported, self._processes = plan.round, None, False, []
        shared = {
            "WORLD_SIZE": len(plan.hosts) * self.num_processes,
            "LOCAL_SIZE": self.num_processes,
            "GROUP_RANK": place,
            "GROUP_WORLD_SIZE": len(plan.hosts),
            "MASTER_ADDR": json.loads(self.store.get(f"host/{plan.hosts[0]}"))[1],
            "MASTER_PORT": self.store.get(key).decode(),
        }
        # SLURM has given this agent the cores of all its processes.
        given = {name: value for name, value in os.environ.items() if name != "SLURM_CPUS_PER_TASK"}
        for local_rank in range(self.num_processes):
            own = {"RANK": place * self.num_processes + local_rank, "LOCAL_RANK": local_rank}
            variables = {name: str(value) for name, value in {**shared, **own}.items()}
            self._processes.append(subprocess.Popen(self.command, env=given | variables, preexec_fn=_die_with_parent))

    def _hand_on(self, number: int) -> None:
        self._asked.add(number)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _kill(self) -> None:
        self._ended_here |= {process.pid for process in self._processes if process.poll() is None}
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _die_with_parent() -> None:
    """In a process that is about to become one of the run's: when its agent is killed, so is it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def open_store(number: int, address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """The agents' store: the first one keeps it, the others wait for it to come up. Raises UserError where it cannot be had."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return dist.TCPStore(address, port, is_master=number == 0, timeout=STORE_TIMEOUT, wait_for_workers=False)
        except dist.DistError as error:
            if number == 0 or time.monotonic() > end:
                raise UserError(f"{address}:{port}: the agents cannot meet there ({first_line(error)})") from None
            time.sleep(1.0)


def own_address(address: str, port: int) -> str:
    """The address of the interface by which this host reaches another one."""
    family, kind, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])
