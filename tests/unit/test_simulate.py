"""The simulation of a thousand ranks: a small one holds what docs/scale.md promises of the large one, and its counts are real."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.simulate import __main__ as simulate
from tools.simulate.counting import COUNTER
from tools.simulate.synthetic import make_set
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.sequence.tokens import released
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [("--ranks", "1"), ("--shards", "0"), ("--samples", "3", "--shards", "4")])
def test_what_cannot_be_simulated_is_one_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", *words])
    with pytest.raises(UserError, match=f"{words[0]} is {words[1]}; take at least"):
        simulate.main()


def test_every_way_of_asking_the_file_system_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    elsewhere = Path(__file__)
    COUNTER.watch(tmp_path)
    for read in (lambda: (tmp_path / "a").read_text(), lambda: os.close(os.open(tmp_path / "a", os.O_RDONLY))):
        read()
    with pytest.raises(FileNotFoundError):
        open(tmp_path / "none")  # noqa: SIM115
    assert COUNTER.calls.opens == 3
    for look in (Path.exists, Path.is_file, Path.stat, os.path.exists, os.path.getsize, os.stat):
        look(tmp_path / "a")
        look(elsewhere)
    assert COUNTER.calls.stats == 6
    for names in (os.listdir, os.scandir, lambda path: list(path.glob("*"))):
        names(tmp_path)
    assert COUNTER.calls.listings == 3
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: [(tmp_path / "a").stat() for _ in range(1000)], range(8)))
    assert COUNTER.calls.stats >= 8006
    elsewhere.read_text()
    assert COUNTER.calls.opens == 3


def test_the_synthetic_set_is_a_set(tmp_path: Path) -> None:
    packs = make_set(tmp_path, released(), num_shards=3, num_samples=240, seq_len=64)
    reader = ShardReader(tmp_path / "train")
    assert packs == len(reader) == 30
    assert [len(reader[index]) for index in (0, 29)] == [8, 8]
    assert all("checksum" in problem for problem in verify(tmp_path / "train"))  # of what was not read to be made


@pytest.mark.slow
def test_a_small_run_of_many_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.simulate", "--ranks", "64", "--shards", "300", "--samples", "240000"]
    command += ["--checkpoint", "0.5b", "--run", "4", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["opens"] <= 3 and figures["handles"] <= 64 and figures["loader_mb"] <= 60
    assert figures["checkpoint_files"] == 65
    assert (
        figures["resume_stats"] == 66 + 65
    )  # of rank 0 each file and run.json; of all, and of rank 0 once more, their folder
    assert figures["resume_stats_per_rank"] == 2.05
    assert figures["lost_shard_named"] == 2
    assert figures["fault_requests_per_rank"] == 3
    assert "no sign of life from rank(s) 63" in done.stdout
    assert list(tmp_path.iterdir()) == []
