"""Real launches on two hosts: by tools/launch.py and by `deepspeed --hostfile` over ssh, with a host that loses its network,
and with the mistakes that only other hosts show.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, two_hosts
from tests.distributed.small_run import TRAIN, execute, make_run, records
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.telemetry.events import read_events

STEPS, SAVE_EVERY, STEP_TIMEOUT_S = 30, 5, 20
Hosts = tuple[Host, Host]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and the config of a run of tensor parallelism x ZeRO-3, and a host file."""
    folder = tmp_path_factory.mktemp("work")
    make_run(
        folder,
        train={"steps": STEPS, "eval_every": 0},
        parallel={"tensor": 2},
        checkpoint={"save_every": SAVE_EVERY},
        guard={"step_timeout": float(STEP_TIMEOUT_S)},
    )
    (folder / "hosts").write_text("# both\nalpha slots=2\nbeta slots=2\n")
    return folder


def command(run: Path, work: Path, *settings: str) -> list[str]:
    return [TRAIN, "--config", str(work / "config.yaml"), f"run_dir={run}", *settings]


def launch(work: Path, *settings: str, hostfile: Path | None = None, options: tuple[str, ...] = ()) -> list[str]:
    """The checked launch of a run on both hosts, two processes each."""
    checked = [sys.executable, "tools/launch.py", f"--hostfile={hostfile or work / 'hosts'}", *options]
    return [*checked, *command(work / "run", work, *settings)]


@pytest.fixture(scope="module")
def cut(hosts: Hosts, work: Path) -> str:
    """What a launch says whose second host loses its network in the midst."""
    alpha, beta = hosts
    log = work / "cut.log"
    process = alpha.start(log, *launch(work))
    wait_for_step(work / "run", SAVE_EVERY + 1, process, log)
    beta.wire("down")
    begin = time.monotonic()
    status = process.wait(timeout=300)
    seconds = time.monotonic() - begin
    beta.wire("up")
    assert status != 0, log.read_text()
    assert seconds < 100, log.read_text()  # the step's timeout, and ssh's own 30 seconds for a silent host
    return log.read_text()


@pytest.fixture(scope="module")
def resumed(hosts: Hosts, work: Path, cut: str) -> Path:
    """The run after it has been started again, as DeepSpeed's users do."""
    program = str(Path(sys.executable).with_name("deepspeed"))
    done = hosts[0].run(program, f"--hostfile={work / 'hosts'}", *command(work / "run", work))
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "run"


def test_a_host_that_loses_its_network_is_named(cut: str, work: Path) -> None:
    assert "no sign of life from rank(s) 2-3" in cut, cut
    (fault,) = [event for event in read_events(work / "run") if event["event"] == "fault"]
    assert "no sign of life from rank(s) 2-3" in fault["reason"]


def test_two_hosts_train_as_one_process(resumed: Path, work: Path) -> None:
    """The steps before the cut, those done again, and those after it."""
    logs = sorted(path.name for path in (resumed / "logs").glob("rank-*.log"))
    assert logs == [f"rank-{rank:05d}.log" for rank in range(4)]
    starts = [event["step"] for event in read_events(resumed) if event["event"] == "start"]
    assert len(starts) == 2 and starts[1] >= SAVE_EVERY and starts[1] % SAVE_EVERY == 0
    alone = execute([sys.executable, *command(work / "alone", work, "parallel.tensor=1", "checkpoint.save_every=0")])
    assert alone.returncode == 0, alone.stderr
    figures = ("step", "loss", "ar_loss", "nar_loss", "grad_norm")
    one, two = ([r for r in records(run) if "loss" in r] for run in (work / "alone", resumed))
    assert [r["step"] for r in two] == list(range(1, STEPS + 1))
    for mine, other in zip(one, two, strict=True):
        assert [mine[key] for key in figures] == pytest.approx([other[key] for key in figures], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ((), ("--master_port=22",), "alpha: port 22 cannot be opened ([Errno 98] Address already in use)"),
        (("data.train=nowhere/train",), (), "alpha: lacks nowhere/train.json; beta: lacks nowhere/train.json"),
        (("train.global_batch=3",), (), "train.global_batch=3"),
        (("run_dir=/run/mine",), (), "beta: lacks the run folder /run/mine of this host (share it)"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(
    hosts: Hosts, work: Path, settings: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    is_refused(hosts[0].run(*launch(work, *settings, options=options)), said)


def test_hosts_that_cannot_be_reached_are_named(hosts: Hosts, work: Path) -> None:
    hostfile = work / "more-hosts"
    hostfile.write_text("alpha slots=2\ngamma slots=2\nnobody slots=2\n")
    done = hosts[0].run(*launch(work, hostfile=hostfile))
    is_refused(done, "gamma: cannot be reached by ssh (ssh: connect to host gamma port 22: ")
    is_refused(done, "; nobody: cannot be reached by ssh (ssh: Could not resolve hostname nobody")
    assert "alpha: " not in done.stderr


def is_refused(done: Done, said: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 300  # in a new environment, beside other tests, the first steps took 170
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_run_goes_on_by_itself_when_a_host_loses_its_network(hosts: Hosts, resumed: Path, work: Path) -> None:
    """An agent on each host: no human, on half as many processes, with the figures of a run that nothing happened to."""
    alpha, beta = hosts
    run, address = work / "elastic", "10.77.0.1"
    agent = [
        sys.executable,
        "tools/elastic.py",
        "--nproc-per-node=2",
        *command(run, work, "checkpoint.async_save=true"),
    ]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    first, second = (
        host.start(work / f"agent-{host.name}.log", *agent, RANK=str(number), **meet)
        for number, host in enumerate((alpha, beta))
    )
    wait_for_step(run, SAVE_EVERY + 1, first, work / "agent-alpha.log")
    beta.wire("down")
    try:
        assert first.wait(timeout=300) == 0, (work / "agent-alpha.log").read_text()
        assert second.wait(timeout=60) == 76, (work / "agent-beta.log").read_text()
    finally:
        beta.wire("up")
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert [start["hosts"] for start in starts] == [{"alpha": "0-1", "beta": "2-3"}, {"alpha": "0-1"}]
    assert "lost beta" in (work / "agent-alpha.log").read_text()
    figures = ("step", "loss", "ar_loss", "nar_loss", "grad_norm")
    one, two = ([r for r in records(where) if "loss" in r] for where in (resumed, run))
    for mine, other in zip(one, two, strict=True):
        assert [mine[key] for key in figures] == pytest.approx([other[key] for key in figures], rel=1e-5)
