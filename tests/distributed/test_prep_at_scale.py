"""Data preparation shared out and killed: the same bytes from one task, array tasks, workers and MPI ranks, and after kills."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from tests.prep_way import make_corpus, steps, walk
from tests.shared_work import ROOT, assert_same, command, contents
from ttt_dist.data.shards import ShardReader
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

KILLS = 10  # 50 and more: python -m tests.prep_way kill


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("at_scale") / "corpus"
    make_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> dict[str, bytes]:
    """What one task writes."""
    out = corpus.parent / "undisturbed"
    walk(corpus, out)
    return contents(out)


def test_there_is_something_to_share(undisturbed: dict[str, bytes], corpus: Path) -> None:
    assert sum(name.startswith("codes/part-") and name.endswith(".json") for name in undisturbed) == 8
    assert sum(name.startswith("samples/part-") and name.endswith(".json") for name in undisturbed) == 8
    names = json.loads(undisturbed["shards/train.json"])["shards"]
    assert len(names) == 5
    reader = ShardReader(corpus.parent / "undisturbed" / "shards" / "train")
    assert reader.meta["counts"]["samples"] == 2 * 48 == sum(len(reader[i]) for i in range(len(reader)))
    assert len(reader.lengths()) == len(reader)
    for prefix in ("codes", "samples", "shards/train"):
        main(["verify", str(corpus.parent / "undisturbed" / prefix)])


def test_killed_at_random_moments(corpus: Path, tmp_path: Path) -> None:
    where = ["--corpus", str(corpus), "--out", str(tmp_path / "out")]
    done = command("-m", "tests.prep_way", "kill", *where, "--kills", str(KILLS))
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == KILLS
    assert figures["compared"] >= 1


def test_killed_between_any_two_files(tmp_path: Path) -> None:
    where = ["--corpus", str(tmp_path / "corpus"), "--utterances", "12", "--out", str(tmp_path / "out")]
    done = command("-m", "tests.prep_way", "kill", *where, "--changes", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 40


def test_eight_array_tasks_in_any_order(corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    order = random.Random(0).sample(range(8), 8)
    steps_of = [list(steps(corpus, tmp_path / "out", "--task", str(task), "--tasks", "8")) for task in order]
    for number in range(3):
        for of_task in steps_of:
            main(of_task[number])
    assert_same(contents(tmp_path / "out"), undisturbed)


def test_worker_processes(corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    walk(corpus, tmp_path / "out", "--workers", "2")
    assert_same(contents(tmp_path / "out"), undisturbed)


def test_three_mpi_ranks(corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    told = []
    for step in steps(corpus, tmp_path / "out"):
        done = command("-m", "data_prep", *step, ranks=3)
        assert done.returncode == 0, done.stderr[-3000:]
        told.append(done.stdout.splitlines()[-1] + done.stderr)
    assert_same(contents(tmp_path / "out"), undisturbed)
    assert "48 utterances" in told[0]
    assert all(told[0].count(place) == 1 for place in ("train.jsonl:21: ", "train.jsonl:34: "))
    encode = next(steps(corpus, tmp_path / "out"))
    done = command("-m", "data_prep", *encode, "--max-errors", "1", ranks=3)
    assert done.returncode == 1
    assert done.stderr.count("error: 2 bad files or lines") == 1


def test_two_jobs_writing_one_output(corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    encode, compose, pack = steps(corpus, out)
    with (
        lease(out / "codes" / "part-00002"),
        pytest.raises(UserError, match=r"part-00002: 1 part\(s\) are being written by process \d+ on"),
    ):
        main(encode)
    with pytest.raises(
        UserError, match=r"part-00002\.json: missing, there are to be 8 parts; run data_prep encode again"
    ):
        main(compose)
    jobs = [
        subprocess.Popen([sys.executable, "-m", "data_prep", *encode], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [job.communicate(timeout=400)[1].decode() for job in jobs]
    for job, told in zip(jobs, errors, strict=True):
        assert job.returncode == 0 or "being written by process" in told, told
    for step in (encode, compose, pack):
        main(step)
    assert_same(contents(out), undisturbed)


def test_any_flipped_byte_a_truncation_and_missing_files_are_found(
    corpus: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(corpus.parent / "undisturbed", out)
    rng = np.random.default_rng(0)

    def problems() -> int:
        found = 0
        for target in ("codec", "tokenizer", "codes", "samples", "shards/train"):
            try:
                main(["verify", str(out / target)])
            except UserError:
                found += 1
        return found

    assert problems() == 0
    names = sorted(undisturbed)
    chosen = [*rng.permutation(names)[:40].tolist(), *[name for name in names if "/part-" not in name]]
    for number, name in enumerate(chosen):
        path, content = out / name, undisturbed[name]
        if number % 4 == 3:
            path.write_bytes(content[: int(rng.integers(len(content)))])
        elif number % 8 == 6 and not name.endswith(".shards"):  # which is a copy, and is made again
            path.unlink()
        else:
            place, bit = int(rng.integers(len(content))), 1 << int(rng.integers(8))
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        assert problems(), f"{name} was changed and nobody noticed"
        path.write_bytes(content)
    stale = undisturbed["shards/train-00001-of-00005.idx"]
    (out / "shards" / "train-00000-of-00005.idx").write_bytes(stale)
    assert problems()
