"""The scripts of slurm/ on a real SLURM: each is submitted and runs to its end; a job that is stopped, killed or out of time
comes back and ends as one that nothing happened to.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from data_prep.__main__ import main as data_prep
from tests.cluster.slurm import Job, Slurm, running_slurm, wait_until
from tests.distributed.small_run import ROOT, records, timeless
from tests.prep_way import make_corpus, steps
from tests.shared_work import contents
from tests.structures import SHARED
from ttt_dist.checkpoint.manifest import require_whole
from ttt_dist.telemetry.events import read_events

STEPS = 90  # enough to stop a run five times before its end
FSDD_RUN = ROOT / "runs" / "fsdd"  # what recipes/fsdd.yaml has trained, where somebody has run it
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of short tones."""
    folder = tmp_path_factory.mktemp("work")
    make_corpus(folder / "corpus", num_utterances=36)
    return folder


@pytest.fixture(scope="module")
def encoded(slurm: Slurm, work: Path) -> Job:
    """encode.sbatch as an array of two tasks."""
    codec = ("--train-codec", "--codec-out", str(work / "codec"), "--sample-rate", "8000", "--codebook-size", "16")
    values = {"MANIFEST": str(work / "corpus" / "train.jsonl"), "CODEC": "melvq", "OUT": str(work / "codes")}
    job = slurm.submit(
        "encode.sbatch", *codec, "--part-size", "7", "--max-errors", "2", options=("--array=0-1",), **values
    )
    job.wait()
    return job


@pytest.fixture(scope="module")
def config(encoded: Job, work: Path) -> Path:
    """Settings of a run on what was encoded: ZeRO-3 on two processes."""
    _, compose, pack = steps(work / "corpus", work)
    for step in (compose, pack):
        data_prep(step)
    settings = {
        "run_dir": str(work / "run"),
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 64},
        "data": {"train": str(work / "shards" / "train")},
        "train": {"steps": STEPS, "global_batch": 2, "micro_batch": 1, "warmup": 2, "lr": 1e-3},
        "telemetry": {"log_every": 1},
    }
    (work / "config.yaml").write_text(yaml.safe_dump(settings))
    return work / "config.yaml"


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, config: Path) -> Job:
    """A job that trains to the end."""
    job = slurm.submit("train.sbatch", options=TWO_NODES, CONFIG=str(config))
    job.wait()
    return job


def test_encode_as_an_array(encoded: Job, work: Path) -> None:
    assert encoded.states == {"COMPLETED"}, encoded.log
    assert "(task 0 of 2: " in encoded.log and "(task 1 of 2: " in encoded.log
    data_prep(["verify", str(work / "codes")])


def test_train_on_two_nodes(undisturbed: Job, work: Path) -> None:
    assert undisturbed.states == {"COMPLETED"}, undisturbed.log
    assert [record["step"] for record in records(work / "run") if "loss" in record] == list(range(1, STEPS + 1))
    assert json.loads((work / "run" / "environment.json").read_text())["world_size"] == 2
    assert undisturbed.log.count("held-out") == 0 and undisturbed.log.count(" from step 0") == 1  # rank 0 alone talks


def test_stopped_killed_and_out_of_time_it_ends_as_if_nothing_had_happened(
    slurm: Slurm, config: Path, undisturbed: Job, work: Path
) -> None:
    run = work / "interrupted"
    # A checkpoint at every step changes no figure, but leaves time to stop it.
    own = (f"run_dir={run}", "checkpoint.save_every=1")
    start = dict(options=(*TWO_NODES, "--time=60"), CONFIG=str(config), MAX_RESTARTS="4")

    cancelled = slurm.submit("train.sbatch", *own, **start)
    wait_for_step(run, 5, cancelled)
    cancelled.cancel()
    wait_until(lambda: not cancelled.states & {"RUNNING", "COMPLETING"}, cancelled)
    assert cancelled.states == {"CANCELLED"}, cancelled.log  # whoever cancels a job does not want it back
    wait_until(lambda: last_stop(run) == "SIGTERM", cancelled, timeout_s=60)
    assert "queued again" not in cancelled.log

    job = slurm.submit("train.sbatch", *own, **start)
    for restarts, name in enumerate(("USR1", "TERM"), start=1):
        wait_for_step(run, done(run) + 5, job)
        job.signal(name)
        job.wait_until_queued_again(restarts)
        assert last_stop(run) == f"SIG{name}"
        job.start_again_soon()
    assert job.log.count("status 75, stopped as asked, and saved: queued again") == 2, job.log
    wait_for_step(run, done(run) + 5, job)
    job.process(rank=1).kill()
    job.wait_until_queued_again(3)
    assert job.log.count("status 137, lost a process; restart 3 of at most 4: queued again") == 1, job.log
    job.start_again_soon()

    wait_for_step(run, done(run) + 5, job)
    # Whatever the speed of this machine: held until SLURM wakes it to tell that the time limit is near.
    job.process(rank=1).suspend()
    job.change(TimeLimit=str(job.minutes + 2))  # less is left than --signal asks for; SLURM looks every 30 seconds
    job.wait_until_queued_again(4)
    assert last_stop(run) == "SIGUSR1"
    assert done(run) < STEPS
    job.start_again_soon(TimeLimit="60")
    assert job.wait() == {"COMPLETED"}, job.log
    assert timeless(run) == timeless(work / "run")
    weights = "export/model.safetensors"
    assert (run / weights).read_bytes() == (work / "run" / weights).read_bytes()


def test_a_mistake_and_too_many_restarts_end_a_job(slurm: Slurm, config: Path, work: Path) -> None:
    wrong = slurm.submit("train.sbatch", "train.global_batch=3", options=TWO_NODES, CONFIG=str(config))
    lost = slurm.submit(
        "train.sbatch", f"run_dir={work / 'lost'}", options=(*TWO_NODES, "--dependency=afterany:" + wrong.number),
        CONFIG=str(config), MAX_RESTARTS="0",
    )  # fmt: skip
    assert wrong.wait() == {"FAILED"}
    assert wrong.facts("ExitCode") == ["1:0"] and wrong.facts("Restarts") == ["0"]
    assert "train.global_batch=3" in wrong.log, wrong.log
    wait_for_step(work / "lost", 5, lost)
    lost.process(rank=0).kill()
    assert lost.wait() == {"FAILED"}, lost.log
    assert lost.facts("Restarts") == ["0"]


def test_an_elastic_job_goes_on_without_a_lost_host(slurm: Slurm, config: Path, undisturbed: Job, work: Path) -> None:
    run, bad = work / "elastic", work / "bad-hosts"
    own = (f"run_dir={run}", "checkpoint.save_every=1", "checkpoint.async_save=true")
    job = slurm.submit(
        "train.sbatch", *own, options=(*TWO_NODES, "--no-kill", "--time=60"),
        CONFIG=str(config), ELASTIC="1", BAD_HOSTS=str(bad),
    )  # fmt: skip
    wait_for_step(run, 5, job)
    agent_of(job, 1).kill()
    assert job.wait() == {"COMPLETED"}, job.log
    assert [start["world_size"] for start in starts_of(run)] == [2, 1] and starts_of(run)[1]["step"] >= 4
    assert job.facts("Restarts") == ["0"] and bad.read_text() == "n2\n"
    one, two = ([record for record in records(where) if "loss" in record] for where in (work / "run", run))
    first = starts_of(run)[1]["step"]
    for mine, other in zip(one[: first + 5], two[: first + 5], strict=True):
        assert [mine[key] for key in ("step", "loss", "grad_norm")] == pytest.approx(
            [other[key] for key in ("step", "loss", "grad_norm")], rel=1e-5
        )
    assert two[-1]["step"] == STEPS


def test_an_elastic_job_is_not_queued_again_for_a_node_that_lost_processes(
    slurm: Slurm, config: Path, undisturbed: Job, work: Path
) -> None:
    run, bad = work / "moved", work / "bad-node"
    job = slurm.submit(
        "train.sbatch", f"run_dir={run}", "checkpoint.save_every=1",
        options=("--nodes=1", "--ntasks-per-node=1", "--no-kill", "--time=60"),
        CONFIG=str(config), ELASTIC="1", BAD_HOSTS=str(bad), MAX_RESTARTS="1",
    )  # fmt: skip
    for number in (1, 2):  # the agent starts it again once
        wait_until(lambda number=number: len(starts_of(run)) == number, job)  # type: ignore[misc]
        wait_for_step(run, done(run) + 3, job)
        agent_of(job, 0).children()[0].kill()
    job.wait_until_queued_again(1)
    assert set(bad.read_text().split()) == {"n1"}
    wait_until(lambda: f"train.sbatch: n1 ({bad}): excluded" in job.log, job)
    assert job.facts("ExcNodeList") == ["n1"]
    job.start_again_soon()
    assert job.wait() == {"COMPLETED"}, job.log
    assert job.facts("NodeList") == ["n2"] and len(starts_of(run)) == 3


def agent_of(job: Job, host: int) -> psutil.Process:
    agent = job.process(rank=host)
    assert "tools/elastic.py" in agent.cmdline()
    return agent


def starts_of(run: Path) -> list[dict]:
    return [event for event in read_events(run) if event["event"] == "start"]


def test_convert_and_evaluate(slurm: Slurm, undisturbed: Job, work: Path) -> None:
    out = work / "resharded"
    converted = slurm.submit("convert.sbatch", "reshard", "--source", str(work / "run"), "--out", str(out))
    few = ("--limit", "8", "--part-size", "1", "--max-text", "4", "--audio-root", str(work / "corpus"))
    where = {"MODEL": str(work / "run" / "export"), "DATA": str(work / "corpus" / "train.jsonl")}
    shared, alone = work / "shared", work / "alone"
    options = ("--array=0-1", "--ntasks=2")
    evaluated = slurm.submit("evaluate.sbatch", *few, options=options, **where, OUT=str(shared))
    assert converted.wait() == {"COMPLETED"}, converted.log
    require_whole(out)
    assert evaluated.wait() == {"COMPLETED"}, evaluated.log
    assert all(f"(task {number} of 4: 2 of 8 parts)" in evaluated.log for number in range(4)), evaluated.log
    again = slurm.submit("evaluate.sbatch", *few, **where, OUT=str(alone))
    assert again.wait() == {"COMPLETED"}, again.log
    assert json.loads((alone / "asr_summary.json").read_text())["items"] == 8
    assert json.loads(again.log.strip().splitlines()[-1])["items"] == 8
    assert contents(shared) == contents(alone)


@pytest.mark.skipif(not (FSDD_RUN / "export").is_dir(), reason=f"{FSDD_RUN}: no model trained on the real recordings")
def test_real_speech_is_evaluated(slurm: Slurm, tmp_path: Path) -> None:
    where = {"MODEL": str(FSDD_RUN / "export"), "DATA": str(FSDD_RUN / "data" / "test.jsonl"), "OUT": str(tmp_path)}
    root = ("--audio-root", str(SHARED / "fsdd" / "recordings"))
    job = slurm.submit("evaluate.sbatch", "--limit", "100", "--block", "6", "--steps", "6", *root, **where)
    assert job.wait() == {"COMPLETED"}, job.log
    summary = json.loads((tmp_path / "asr_summary.json").read_text())
    assert (summary["items"], summary["errors"]) == (100, 0) and summary["wer"] < 0.2


def done(run: Path) -> int:
    """The last step that the run has recorded."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def wait_for_step(run: Path, step: int, job: Job) -> None:
    def arrived() -> bool:
        assert not job.states & {"FAILED", "COMPLETED"}, f"it has ended at step {done(run)}:\n{job.log}"
        return done(run) >= step

    wait_until(arrived, job)


def last_stop(run: Path) -> str | None:
    return next((event["reason"] for event in reversed(read_events(run)) if event["event"] == "stop"), None)
