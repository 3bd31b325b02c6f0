"""What ends a run, and that nothing is lost: signals, a killed, a stuck, a frozen process, numbers that are not finite, a
full disk, damaged checkpoints. Each run is the real command on two processes, and each goes on to the very figures of a
run that nothing happened to.
"""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.small_run import Ranks, copy_of, make_run, records, timeless
from tests.shared_work import command
from ttt_dist.checkpoint.manifest import require_whole
from ttt_dist.config.loader import load_config
from ttt_dist.launch.elastic import host_name
from ttt_dist.telemetry.events import read_events

STEPS, SAVE_EVERY = 14, 4
FAULTY = "tests/distributed/faulty_train.py"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_run(
        folder,
        train={"steps": STEPS, "eval_every": 0, "gc_every": 0},
        checkpoint={"save_every": SAVE_EVERY, "keep_last": 2},
        guard={"step_timeout": 4.0},
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    run = work / "undisturbed"
    assert start(work, run).wait() == [0, 0]
    return run


def start(work: Path, run: Path, *settings: str, program: str = "ttt_dist/train.py", **more: str) -> Ranks:
    """The run on two processes, as `srun` starts them."""
    run.mkdir(exist_ok=True)
    arguments = ("--config", str(work / "config.yaml"), f"run_dir={run}", *settings)
    return Ranks(2, *arguments, program=program, log=run / "output", **more)


def step_of(run: Path) -> int:
    """Last step that the run has recorded."""
    try:
        return max((record["step"] for record in records(run)), default=0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def wait_until(condition: Callable[[], bool], ranks: Ranks) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert ranks.running, ranks.output()
        assert time.monotonic() < end, ranks.output()
        time.sleep(0.01)


def assert_goes_on(work: Path, run: Path, undisturbed: Path, from_step: int | None = None) -> None:
    """Started again, the run ends with the figures, and the weights, of the undisturbed one."""
    again = start(work, run)
    assert again.wait() == [0, 0], again.output()
    assert timeless(run) == timeless(undisturbed)
    weights = "export/model.safetensors"
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()
    if from_step is not None:
        assert [event for event in read_events(run) if event["event"] == "start"][-1]["step"] == from_step


def test_a_signal_to_one_process_stops_all_with_everything_saved(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(work, run)
    wait_until(lambda: step_of(run) >= 2, ranks)
    ranks.signal(signal.SIGTERM, rank=1)
    assert ranks.wait() == [75, 75], ranks.output()
    assert re.search(r"SIGTERM; saved at step \d+, start again", ranks.output())
    assert ranks.output().count("start again") == 1  # one process tells it for all
    stop = next(event for event in read_events(run) if event["event"] == "stop")
    assert stop["reason"] == "SIGTERM"
    assert_goes_on(work, run, undisturbed, from_step=stop["step"])


def test_a_killed_process_is_named_and_costs_the_steps_since_the_last_checkpoint(
    work: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ranks = start(work, run)
    wait_until(lambda: step_of(run) >= SAVE_EVERY + 1, ranks)
    ranks.signal(signal.SIGKILL, rank=1)
    assert ranks.wait() == [76, -signal.SIGKILL], ranks.output()
    assert "no sign of life from rank(s) 1" in ranks.output()
    assert_goes_on(work, run, undisturbed)


def test_a_process_that_is_lost_before_the_first_step_is_lost_like_any_other(work: Path, tmp_path: Path) -> None:
    """With 1 for a status, nobody would start the run again."""
    run = tmp_path / "run"
    ranks = start(work, run, program=FAULTY, FAULT="gone:1:0")
    assert ranks.wait() == [76, -signal.SIGKILL], ranks.output()
    assert "lost a connection; no sign of life from rank(s) 1" in ranks.output()
    assert "no sign of life" in read_events(run)[-1]["reason"]


def test_a_stuck_process_is_named_and_all_stacks_are_dumped(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(work, run, program=FAULTY, FAULT="hang:1:6")
    assert ranks.wait() == [76, 76], ranks.output()
    assert "rank(s) 1 still in step 6: reading data" in ranks.output()
    stacks = {path.name: path.read_text() for path in (run / "logs").glob("*.stacks.txt")}
    assert sorted(stacks) == ["rank-00000.stacks.txt", "rank-00001.stacks.txt"]
    assert "in hang" in stacks["rank-00001.stacks.txt"]
    assert "train_step" in stacks["rank-00000.stacks.txt"]
    assert "rank(s) 1" in next(event for event in read_events(run) if event["event"] == "fault")["reason"]
    assert_goes_on(work, run, undisturbed, from_step=SAVE_EVERY)


def test_a_frozen_process_is_named(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(work, run)
    wait_until(lambda: step_of(run) >= 2, ranks)
    ranks.signal(signal.SIGSTOP, rank=1)
    assert ranks.wait() == [76, -signal.SIGKILL], ranks.output()
    assert "no sign of life from rank(s) 1" in ranks.output()


def test_too_many_skipped_steps_end_the_run_with_the_evidence(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(work, run, "guard.max_skipped=1", program=FAULTY, FAULT="nan:1:6-7")
    assert ranks.wait() == [77, 77], ranks.output()
    assert "2 steps in a row skipped, up to step 7" in ranks.output()
    evidence = [event for event in read_events(run) if event["event"] == "skipped_step"][-1]
    assert evidence["in_a_row"] == 2
    assert [rank["rank"] for rank in evidence["ranks"]] == [0, 1]
    assert sum(len(rank["packs"]) for rank in evidence["ranks"]) == 8
    assert_goes_on(work, run, undisturbed, from_step=SAVE_EVERY)


def test_nothing_is_saved_while_steps_are_skipped(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Or a start again would go on behind the skipped step, as if its data had been learnt."""
    run, local, late = tmp_path / "run", tmp_path / "local", tmp_path / "late"
    after = SAVE_EVERY + 2
    ranks = start(
        work, run, "guard.max_skipped=1", "checkpoint.save_every=2", program=FAULTY, FAULT=f"nan:1:{after}-{after + 1}"
    )
    assert ranks.wait() == [77, 77], ranks.output()
    assert_goes_on(work, run, undisturbed, from_step=SAVE_EVERY)

    on_disk = ("checkpoint.local_every=2", f"checkpoint.local_dir={tmp_path / 'disk'}")
    ranks = start(work, local, "guard.max_skipped=1", *on_disk, program=FAULTY, FAULT=f"nan:1:{after}-{after + 1}")
    assert ranks.wait() == [77, 77], ranks.output()
    assert not [event for event in read_events(local) if event["event"] == "local_save" and event["step"] >= after]

    ranks = start(work, late, program=FAULTY, FAULT=f"nan:1:{SAVE_EVERY}-{SAVE_EVERY}")
    assert ranks.wait() == [0, 0], ranks.output()
    saved = [event["step"] for event in read_events(late) if event["event"] == "checkpoint"]
    assert saved[:2] == [SAVE_EVERY + 1, 2 * SAVE_EVERY]


def test_data_that_hurts_is_passed_over_where_asked(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("guard.max_skipped=1", "guard.max_data_skips=1")
    ranks = start(work, run, *settings, program=FAULTY, FAULT="nan:1:6-7")
    assert ranks.wait() == [75, 75], ranks.output()
    assert f"goes on from step {SAVE_EVERY} and passes over the packs of steps {SAVE_EVERY} to 6" in ranks.output()
    by_hand = copy_of(run, tmp_path / "by_hand")
    (by_hand / "skipped_data.json").unlink()

    ranks = start(work, run, *settings)
    assert ranks.wait() == [0, 0], ranks.output()
    other = start(work, by_hand, f"data.skip=[[{SAVE_EVERY}, 7]]")
    assert other.wait() == [0, 0], other.output()
    assert timeless(run) == timeless(by_hand) != timeless(undisturbed)
    weights = "export/model.safetensors"
    assert (run / weights).read_bytes() == (by_hand / weights).read_bytes()


def test_a_device_that_computes_wrongly_is_named_and_its_host_left_out(
    work: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run, bad_hosts = tmp_path / "run", tmp_path / "bad_hosts"
    faulty = {"program": FAULTY, "FAULT": "nan:1:6-7", "BAD_HOSTS": str(bad_hosts)}
    ranks = start(work, run, "guard.recompute=true", **faulty)
    assert ranks.wait() == [76, 78], ranks.output()
    host = re.escape(socket.gethostname())
    said = rf"step 6 computed again: device: rank 1 \({host}\) has loss sum \S+, gradient norm nan where rank 0 .*--exclude={host}\)"
    assert len(re.findall(said, ranks.output())) == 1, ranks.output()
    assert bad_hosts.read_text() == f"{host_name()}\n"
    skipped, fault = [event for event in read_events(run) if event["event"] in ("skipped_step", "fault")]
    assert (skipped["verdict"]["kind"], skipped["verdict"]["ranks"]) == ("device", [1])
    assert "rank 1" in fault["reason"]
    assert_goes_on(work, run, undisturbed, from_step=SAVE_EVERY)


def test_data_that_hurts_is_no_device_and_computing_it_again_changes_nothing(work: Path, tmp_path: Path) -> None:
    runs = {False: tmp_path / "once", True: tmp_path / "again"}
    for recompute, run in runs.items():
        ranks = start(work, run, f"guard.recompute={recompute}".lower(), program=FAULTY, FAULT="data:1:6")
        assert ranks.wait() == [0, 0], ranks.output()
    assert timeless(runs[True]) == timeless(runs[False])
    weights = "export/model.safetensors"
    assert (runs[True] / weights).read_bytes() == (runs[False] / weights).read_bytes()
    (event,) = [event for event in read_events(runs[True]) if event["event"] == "skipped_step"]
    assert (event["verdict"]["kind"], event["verdict"]["ranks"]) == ("data", [1])
    first_pack = event["ranks"][1]["packs"][0]
    assert "computed again: the same figures on another rank too: data: rank 1 " in ranks.output()
    assert f"packs {first_pack}" in ranks.output()
    assert ranks.output().count("computed again") == 1


def test_data_is_passed_over_from_where_the_next_start_begins_and_not_for_ever(
    work: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The run starts from another one's checkpoint and has none of its own yet, but a set on the hosts' disks, when it gives up."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    trunk = str(undisturbed / "checkpoints" / f"step-{3 * SAVE_EVERY:08d}")
    settings = ("--resume", trunk, "guard.max_skipped=0", "guard.max_data_skips=2", "checkpoint.save_every=0")
    local = ("checkpoint.local_every=1", f"checkpoint.local_dir={disk}")
    for skips in ([[12, 13]], [[12, 13], [12, 13]]):
        ranks = start(work, run, *settings, program=FAULTY, FAULT="nan:1:13-14")
        assert ranks.wait() == [75, 75], ranks.output()
        assert json.loads((run / "skipped_data.json").read_text()) == skips
        assert (
            load_config(run / "config.yaml").data.skip == []
        )  # or it would count twice under --config RUN/config.yaml
    ranks = start(work, run, *settings, program=FAULTY, FAULT="nan:1:13-14")
    assert ranks.wait() == [77, 77], ranks.output()

    other = tmp_path / "other"
    ranks = start(work, other, *settings, *local, program=FAULTY, FAULT="nan:1:14-14")
    assert ranks.wait() == [75, 75], ranks.output()
    assert json.loads((other / "skipped_data.json").read_text()) == [[13, 14]]


def test_a_disk_that_fills_up_while_saving_is_one_line(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(work, run, program="tests/distributed/small_disk_train.py", FULL_AFTER="1")
    assert set(ranks.wait()) == {1}, ranks.output()
    assert "no space left on the disk while writing it; free some" in ranks.output()
    assert "Traceback" not in ranks.output()
    left = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert left == ["latest", f"step-{SAVE_EVERY:08d}"]
    assert_goes_on(work, run, undisturbed, from_step=SAVE_EVERY)


def flip(checkpoint: Path) -> None:
    """Change one bit of the largest file."""
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))


def test_a_damaged_newest_checkpoint_is_skipped(work: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = copy_of(undisturbed, tmp_path / "run")
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    flip(newest)
    assert_goes_on(work, run, undisturbed, from_step=12)
    output = (run / "output-rank-0.txt").read_text()
    assert re.search(rf"warning: skipping a checkpoint: \S*{newest.name}", output), output
    require_whole(newest)  # written anew


def test_killed_between_any_two_files(tmp_path: Path) -> None:
    """One process, at some of the moments that a save, the rules of keeping or the export could be struck; `--changes 1`: at all."""
    done = command("-m", "tests.trained", "kill", "--work", str(tmp_path), "--changes", "8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 8
