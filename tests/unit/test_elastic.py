"""What follows when hosts and processes are lost: who takes part in the next start, when it is over, what is told."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.structures import tiny_layout
from tests.unit.test_blend import write_shard
from tools.elastic import is_divisible
from ttt_dist.checkpoint.data_skips import add_skip
from ttt_dist.checkpoint.restore import skips_of_run
from ttt_dist.config.data import DataConfig
from ttt_dist.config.run import BatchStage, Config, ParallelConfig, TrainConfig
from ttt_dist.data.blend import SampleIndex
from ttt_dist.data.loader import open_loaders
from ttt_dist.launch import elastic
from ttt_dist.launch.elastic import Coordinator, choose_hosts, worst


def even(number: int) -> bool:
    return number % 2 == 0


@pytest.mark.parametrize(
    ("alive", "failures", "most", "usable", "chosen"),
    [
        ([0, 1, 2, 3], {}, 4, even, (0, 1, 2, 3)),
        ([0, 1, 3], {}, 4, even, (0, 1)),
        ([0, 1, 3], {0: 1}, 4, even, (1, 3)),
        ([0, 1, 2], {1: 1}, 2, even, (0, 2)),
        ([0, 1, 2], {0: 1, 1: 1, 2: 3}, 3, bool, (0, 1, 2)),
        ([2], {}, 4, even, ()),
        ([], {}, 4, bool, ()),
    ],
)
def test_as_many_hosts_as_can_be_used_and_those_that_failed_last(
    alive: list[int], failures: dict[int, int], most: int, usable: Callable[[int], bool], chosen: tuple[int, ...]
) -> None:
    assert choose_hosts(alive, failures, most, usable) == chosen


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0, 0], 0),
        ([76, -9], 137),
        ([76, 1], 1),
        ([75, 75], 75),
        ([76, 75], 76),
        ([0, 3], 3),
        ([137, 77], 77),
        ([76, 78], 78),
        ([], 0),
    ],
)
def test_the_status_that_says_most(statuses: list[int], status: int) -> None:
    assert worst(statuses) == status


def test_which_numbers_of_processes_a_run_can_have() -> None:
    config = Config(train=TrainConfig(global_batch=24, micro_batch=2), parallel=ParallelConfig(tensor=2))
    assert [size for size in range(1, 26) if is_divisible(config, size)] == [2, 4, 6, 8, 12, 24]
    config.train.batch_stages = [BatchStage(from_step=5, global_batch=32)]  # which every host must be able to go on to
    assert [size for size in range(1, 26) if is_divisible(config, size)] == [2, 4, 8]


class Hosts:
    """Agents that say what a test tells them to, and a clock."""

    def __init__(self, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_restarts: int = 3) -> None:
        self.store, self.now, self.beating = dist.HashStore(), 0.0, set(range(number))
        monkeypatch.setattr(elastic.time, "monotonic", lambda: self.now)
        self.bad = tmp_path / "bad"
        for host in range(number):
            self.store.set(f"host/{host}", json.dumps([f"n{host}", "127.0.0.1"]))
        self.coordinator = Coordinator(self.store, number, number, even, max_restarts, 60.0, self.bad)

    def wait(self, seconds: float = 1.0) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            for host in self.beating:
                self.store.set(f"beat/{host}", str(self.now))
            self.coordinator.tend()

    def report(self, host: int, *statuses: int) -> None:
        self.store.set(f"report/{self.plan.round}/{host}", json.dumps(statuses))

    @property
    def plan(self) -> elastic.Plan:
        assert self.coordinator.plan is not None
        return self.coordinator.plan


def test_a_silent_host_ends_the_round_and_a_spare_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(5, monkeypatch, tmp_path)
    hosts.wait()
    assert hosts.plan == elastic.Plan(0, (0, 1, 2, 3))
    assert "start 1: on n0, n1, n2, n3; n4 stand(s) by" in capsys.readouterr().out
    hosts.beating.remove(1)
    hosts.wait(elastic.DEAD_S - 1)
    assert not hosts.plan.is_over
    hosts.wait(2)
    assert hosts.plan.is_over and hosts.plan.round == 0  # the others' processes are to end first
    for host in (0, 2, 3):
        hosts.report(host, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (0, 2, 3, 4))
    assert hosts.bad.read_text() == "n1\n"
    hosts.beating -= {0, 4}
    hosts.wait(elastic.DEAD_S + 1)
    for host in (2, 3):
        hosts.report(host, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(2, (2, 3))
    for host in (2, 3):
        hosts.report(host, 0)
    hosts.wait()
    assert hosts.plan.outcome == 0


def test_a_killed_process_makes_its_host_the_last_to_be_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Hosts(3, monkeypatch, tmp_path)
    hosts.wait()
    assert hosts.plan.hosts == (0, 1)
    hosts.report(1, -9)
    hosts.wait()
    assert hosts.plan.is_over and hosts.plan.round == 0
    hosts.report(0, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (0, 2))
    assert hosts.bad.read_text() == "n1\n"


def test_processes_that_abort_as_a_neighbour_was_killed_are_not_to_blame(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As NCCL's own watchdog lets them do, on every host."""
    hosts = Hosts(3, monkeypatch, tmp_path)
    hosts.wait()
    hosts.report(0, -6, -9)
    hosts.report(1, -6, 134)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (1, 2))
    assert hosts.bad.read_text() == "n0\n"
    assert "a process on n0 was killed" in capsys.readouterr().err


def test_a_host_whose_device_computes_wrongly_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(3, monkeypatch, tmp_path)
    hosts.wait()
    hosts.report(0, 76, 78)
    hosts.report(1, 76, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (1, 2))
    assert hosts.bad.read_text() == "n0\n"
    told = capsys.readouterr()
    assert "a device of n0 computes wrongly" in told.err
    assert "start 2: on n1, n2; n0 left out (a device computes wrongly)" in told.out


def test_a_host_whose_device_computes_wrongly_is_not_taken_back_for_want_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(4, monkeypatch, tmp_path, max_restarts=9)
    hosts.wait()
    for host, status in enumerate((78, 76, 76, 76)):
        hosts.report(host, status)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (1, 2))  # two of the three that are left
    hosts.report(1, -9)
    hosts.report(2, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(2, (2, 3))
    hosts.report(2, 76)
    hosts.report(3, -9)
    hosts.wait()
    assert hosts.plan.hosts == (1, 2)  # one whose process was killed is, before that
    hosts.beating.remove(3)
    hosts.wait(elastic.DEAD_S + 1)
    hosts.report(1, 76)
    hosts.report(2, -9, 78)
    hosts.wait()
    assert (hosts.plan.hosts, hosts.plan.outcome) == ((), 78)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "are left" in line]
    assert line.endswith(
        "1 host(s) are left, over which the run cannot be divided; n0, n2 left out (a device computes wrongly): "
        "start again on others in place of these"
    )


def test_a_sound_machine_in_the_place_of_a_bad_one_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = Hosts(3, monkeypatch, tmp_path)
    hosts.wait()
    hosts.report(0, 78)
    hosts.report(1, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(1, (1, 2))
    hosts.store.set("host/0", json.dumps(["another", *json.loads(hosts.store.get("host/0"))[1:]]))
    hosts.report(1, -9)
    hosts.report(2, 76)
    hosts.wait()
    assert hosts.plan == elastic.Plan(2, (0, 2))


@pytest.mark.parametrize("status", [1, 2, 75, 77])
def test_what_would_end_alike_again_or_was_asked_for_is_the_end(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = Hosts(2, monkeypatch, tmp_path)
    hosts.wait()
    hosts.report(0, status)
    hosts.report(1, status)
    hosts.wait()
    assert hosts.plan.outcome == status


def test_it_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(2, monkeypatch, tmp_path, max_restarts=1)
    for _ in range(2):
        hosts.wait()
        hosts.report(0, 76)
        hosts.report(1, 76)
        hosts.wait()
    assert hosts.plan.outcome == 76
    assert "started again 1 times, which is enough" in capsys.readouterr().err


def test_too_few_hosts_are_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(2, monkeypatch, tmp_path)
    hosts.beating.remove(1)
    hosts.wait(59)
    assert hosts.coordinator.plan is None  # the other one may still come
    hosts.wait(2)
    assert hosts.plan.outcome == 76
    assert "1 host(s) are left, over which the run cannot be divided" in capsys.readouterr().err


def test_a_host_that_is_lost_while_data_is_given_up_on_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its neighbours end with 75, as after a signal to stop; nobody has sent one."""
    hosts = Hosts(4, monkeypatch, tmp_path)
    hosts.wait()
    hosts.beating -= {2, 3}
    for host in (0, 1):
        hosts.report(host, 75)
    hosts.wait(elastic.DEAD_S + 1)
    assert hosts.plan == elastic.Plan(1, (0, 1))


def test_a_process_that_a_signal_to_stop_kills_is_no_reason_to_blame_its_host() -> None:
    """As all are that have not come so far as to hear it."""
    store = dist.HashStore()
    store.set("host/0", json.dumps(["n0", "127.0.0.1"]))
    agent = elastic.Agent(number=0, store=store, address="127.0.0.1", command=["sleep", "60"], num_processes=2)
    agent._follow(elastic.Plan(0, (0,)))
    agent._hand_on(signal.SIGUSR1)
    for process in agent._processes:
        process.wait(10)
    agent._follow(elastic.Plan(0, (0,)))
    assert json.loads(store.get("report/0/0")) == [76, 76]
    agent._follow(elastic.Plan(1, (0,)))  # another host is lost at the same time
    assert json.loads(store.get("report/1/0")) == [76] and all(process.poll() for process in agent._processes)


def test_what_is_lost_after_a_signal_to_stop_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Hosts(4, monkeypatch, tmp_path)
    hosts.wait()
    hosts.store.set(elastic.ASKED, "1")
    for host in range(4):
        hosts.report(host, 76)
    hosts.wait()
    assert hosts.plan.outcome == 76 and not hosts.bad.exists()
    assert "lost a process; asked to stop, so the processes are not started again" in capsys.readouterr().err


def test_data_that_is_passed_over_stays_so_on_the_hosts_that_are_left(tmp_path: Path) -> None:
    """Noted in the run folder in steps, which are the same on any number of processes."""
    shard = write_shard(tmp_path / "train", 100, tiny_layout())

    def read(num_processes: int) -> list[list[SampleIndex]]:
        config = Config(run_dir=str(tmp_path / "run"), data=DataConfig(train=shard), train=TrainConfig(global_batch=8))
        config.data.skip = skips_of_run(config)
        loaders = [open_loaders(config, rank, num_processes)[0] for rank in range(num_processes)]
        return [sorted(place for loader in loaders for place in loader.sample_indices(step)) for step in range(8)]

    undisturbed = read(4)
    (tmp_path / "run").mkdir()
    add_skip(tmp_path / "run", 3, 5)
    assert read(4) == read(2) == read(1)
    assert read(2)[:6] == [*undisturbed[:3], *undisturbed[5:]]
