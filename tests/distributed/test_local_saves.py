"""Saves on the hosts' own disks: what is left of them after hosts are lost makes the checkpoint that a run goes on from."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.async_cases import gone_on_locally, saved_locally, saved_locally_beside_a_bad_disk
from tests.distributed.cases import Layout, deviation
from tests.distributed.launch import run_distributed
from tests.distributed.small_run import Ranks, make_run, timeless
from tests.distributed.test_one_loss import FP32_TOLERANCE
from ttt_dist.telemetry.events import read_events

FOUR, TWO = Layout(3, 2, dp=4), Layout(3, 2, dp=2)
SAVE_AT, AFTER = (1, 2, 3), 2
STEPS = range(3, 5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Four processes on two hosts that saved at steps 1 to 3, and the figures of the next two steps."""
    folder = tmp_path_factory.mktemp("local")
    figures = run_distributed([(saved_locally, (FOUR, str(folder), 2, SAVE_AT, AFTER))], 4)[0][0]
    return folder, figures


@pytest.fixture
def disks(saved: tuple[Path, list[Any]], tmp_path: Path) -> Path:
    """A copy of the run and its disks at its own place, as the names on the disks are made from the run's."""
    folder = saved[0]
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def sets(folder: Path, host: int) -> dict[str, list[str]]:
    """Parts that a host's disk holds, by step."""
    paths = (folder / f"disk-of-host-{host}").glob("run-*/*/step-*/part-*.json")
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found.setdefault(path.parent.name, []).append(path.name)
    return found


def part_files(folder: Path, host: int) -> list[Path]:
    return sorted((folder / f"disk-of-host-{host}").glob("run-*/*/step-00000003/*.pt"))


@pytest.mark.slow
def test_each_host_has_its_own_part_and_a_copy_of_its_neighbours(saved: tuple[Path, list[Any]]) -> None:
    for host in (0, 1):
        assert list(sets(saved[0], host)) == ["step-00000002", "step-00000003"]
        assert sets(saved[0], host)["step-00000003"] == [f"part-{rank:05d}.json" for rank in range(4)]
    contents = [{path.name: path.read_bytes() for path in part_files(saved[0], host)} for host in (0, 1)]
    assert contents[0] == contents[1] and len(contents[0]) >= 4


@pytest.mark.slow
def test_the_same_processes_go_on_to_the_last_bit(saved: tuple[Path, list[Any]], disks: Path) -> None:
    for name, figures in run_distributed([(gone_on_locally, (FOUR, str(disks), 2, STEPS))], 4)[0]:
        assert name == "step-00000003"
        assert figures == saved[1]
    assert run_distributed([(gone_on_locally, (TWO, str(disks), 1, STEPS))], 2)[0][0][0] is None  # no newer set


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_costs_nothing(lost: int, saved: tuple[Path, list[Any]], disks: Path) -> None:
    shutil.rmtree(disks / f"disk-of-host-{lost}")
    if lost == 0:
        (disks / "disk-of-host-1").rename(disks / "disk-of-host-0")
    for name, figures in run_distributed([(gone_on_locally, (TWO, str(disks), 2, STEPS))], 2)[0]:
        assert name == "step-00000003"
        assert deviation(figures, saved[1]) < FP32_TOLERANCE


@pytest.mark.slow
def test_a_damaged_file_is_read_from_the_other_host_and_an_incomplete_set_is_passed_over(
    saved: tuple[Path, list[Any]], disks: Path
) -> None:
    damaged = part_files(disks, 0)[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    names = [row[0] for row in run_distributed([(gone_on_locally, (FOUR, str(disks), 2, STEPS))], 4)[0]]
    assert names == ["step-00000003"] * 4
    shutil.rmtree(disks / "run" / "checkpoints" / names[0])
    (part_files(disks, 1)[0].parent / damaged.name).unlink()
    names = [row[0] for row in run_distributed([(gone_on_locally, (FOUR, str(disks), 2, range(2, 3)))], 4)[0]]
    assert names == ["step-00000002"] * 4


@pytest.mark.slow
def test_a_disk_that_takes_no_copy_keeps_nobody_waiting_and_failed_sets_do_not_pile_up(tmp_path: Path) -> None:
    first, second = run_distributed([(saved_locally_beside_a_bad_disk, (Layout(1, 2, dp=2), str(tmp_path)))], 2)[0]
    for failures in ([failure for failure, _ in first], [failure for failure, _ in second]):
        assert all(failure.startswith("rank 1 on ") and "Is a directory" in failure for failure in failures[:2])
        assert failures[2] is None
    assert [sets for _, sets in first] == [[], [], ["step-00000003"]]
    assert [sets for _, sets in second] == [["step-00000001"], ["step-00000002"], ["step-00000003"]]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_last_local_save(tmp_path: Path) -> None:
    config = make_run(
        tmp_path,
        train={"steps": 30, "eval_every": 0},
        checkpoint={"save_every": 0, "local_every": 2, "local_dir": str(tmp_path / "disk")},
    )
    ranks = start(config, tmp_path / "undisturbed")
    assert ranks.wait() == [0, 0], ranks.output()
    run = tmp_path / "run"
    ranks = start(config, run)
    while not any(event["event"] == "local_save" and event["step"] >= 6 for event in read_events(run)):
        assert ranks.running, ranks.output()
        time.sleep(0.01)
    ranks.kill()
    newest = max(event["step"] for event in read_events(run) if event["event"] == "local_save")
    begun = next((tmp_path / "disk").glob("run-*/*")) / "step-00000099"
    begun.mkdir()  # killed before any part of it was whole
    assert not list((run / "checkpoints").glob("step-*"))
    ranks = start(config, run)
    assert ranks.wait() == [0, 0], ranks.output()
    again = [event for event in read_events(run) if event["event"] == "start"][-1]
    assert again["step"] >= newest and "put together from local saves" in ranks.output()
    assert f"skipping a local save: {begun}: no part of it is whole" in ranks.output()
    assert timeless(run) == timeless(tmp_path / "undisturbed")
    left = [path.name for path in (tmp_path / "disk").glob("run-*/*")]
    assert left == [(run / "checkpoints" / ".local-start").read_text().strip()]  # those of the first start are gone


def start(config: Path, run: Path) -> Ranks:
    run.mkdir(exist_ok=True)
    return Ranks(2, "--config", str(config), f"run_dir={run}", log=run / "output")
