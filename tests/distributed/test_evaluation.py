"""An evaluation shared out and killed: the same bytes from one process, shares in any order, workers and MPI ranks."""

import json
import random
import shutil
from pathlib import Path

import pytest

from tests.evaluated import evaluate_here, evaluation, make_workplace
from tests.shared_work import assert_same, command, contents
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

KILLS = 8  # 50 and more: python -m tests.evaluated kill
EVALUATE = "ttt_dist/evaluate.py"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> dict[str, bytes]:
    """What one process writes."""
    evaluate_here(evaluation(work, work / "undisturbed"))
    return contents(work / "undisturbed")


def test_there_is_something_to_share(undisturbed: dict[str, bytes]) -> None:
    assert sum(name.startswith("parts/tts/part-") and name.endswith(".json") for name in undisturbed) == 7
    summary = json.loads(undisturbed["tts_summary.json"])
    assert (summary["items"], summary["errors"]) == (18, 2)
    assert [problem.partition("twenty.jsonl")[2][:4] for problem in summary["problems"]] == [":6: ", ":12:"]
    ids = [json.loads(line)["id"] for line in undisturbed["tts.jsonl"].splitlines()]
    assert ids == [str(number) for number in range(20) if number not in (5, 11)]


@pytest.mark.parametrize("shares", [2, 4])
def test_shares_in_any_order(
    work: Path, tmp_path: Path, undisturbed: dict[str, bytes], shares: int, capsys: pytest.CaptureFixture[str]
) -> None:
    order = random.Random(shares).sample(range(shares), shares)
    for number, share in enumerate(order, start=1):
        evaluate_here(evaluation(work, tmp_path / "out", "--share", str(share), "--shares", str(shares)))
        said = capsys.readouterr().out
        assert (tmp_path / "out" / "tts_summary.json").exists() == (number == shares)
        assert ("the results follow when all 7 parts are there" in said) == (number < shares)
    assert json.loads(said.splitlines()[-1])["items"] == 18
    assert_same(contents(tmp_path / "out"), undisturbed)
    evaluate_here(evaluation(work, tmp_path / "out"))  # nothing is left to do
    assert "7 of 7 parts were there already" in capsys.readouterr().out
    assert_same(contents(tmp_path / "out"), undisturbed)


def test_two_workers(work: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    done = command(EVALUATE, *evaluation(work, tmp_path / "out", "--workers", "2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(undisturbed["tts_summary.json"])
    assert_same(contents(tmp_path / "out"), undisturbed)


def test_two_mpi_ranks(work: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    done = command(EVALUATE, *evaluation(work, tmp_path / "out"), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["errors"] == 2
    assert done.stderr.count("twenty.jsonl:6: ") == done.stderr.count("twenty.jsonl:12: ") == 1
    assert_same(contents(tmp_path / "out"), undisturbed)


def test_killed_at_random_moments(work: Path) -> None:
    done = command("-m", "tests.evaluated", "kill", "--work", str(work), "--kills", str(KILLS))
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == KILLS and figures["compared"] >= 1


def test_a_part_that_another_job_writes_is_left_to_it(
    work: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with (
        lease(part_prefix(out / "parts" / "tts", 2)),
        pytest.raises(UserError, match=r"part-00002: 1 part\(s\) are being written by process \d+ on"),
    ):
        evaluate_here(evaluation(work, out))
    assert not (out / "tts_summary.json").exists()
    evaluate_here(evaluation(work, out))
    assert_same(contents(out), undisturbed)


def test_a_damaged_part_is_refused_and_lost_files_are_made_again(
    work: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(work / "undisturbed", out)
    for name in ("parts/tts/part-00003.jsonl", next(name for name in undisturbed if name.endswith(".wav"))):
        (out / name).unlink()
        evaluate_here(evaluation(work, out))
        assert_same(contents(out), undisturbed)
    path = out / "parts" / "tts" / "part-00003.json"
    path.write_bytes(path.read_bytes().replace(b'"parts": 7', b'"parts": 8'))
    with pytest.raises(UserError, match=r"part-00003\.json: is damaged"):
        evaluate_here(evaluation(work, out))
