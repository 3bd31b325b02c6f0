"""Jobs of parts: dealt to tasks and workers, kept when finished, never written twice at once, swept after a kill."""

import argparse
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_dist.jobs import parts, runner
from ttt_dist.jobs.parts import LineRange, cut_lines, find_parts, part_prefix, read_part, write_part
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback, TaskShard, run_parts, task_shard_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.atomic_files import remove_leftovers
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease, lock_name, require_lease

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Squares(PartJob):
    """Part n holds n squared; odd ones have a problem; `opened` counts files named after processes."""

    folder: Path
    size: int
    slow: float = 0.0
    label = "squaring"
    unit = "number"

    @property
    def num_parts(self) -> int:
        return self.size

    def prefix(self, number: int) -> Path:
        return part_prefix(self.folder, number)

    def amount(self, number: int) -> float:
        return 1

    def open(self) -> None:
        self.opened = True

    def finished(self, number: int) -> Outcome | None:
        assert self.opened
        part = read_part(self.prefix(number), "square again")
        return Outcome(part["counts"], part["problems"]) if part else None

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        remove_leftovers(self.prefix(number).with_suffix(".json"))
        outcome = Outcome({"sum": number * number}, [f"{number} is odd"] if number % 2 else [])
        time.sleep(self.slow)
        tick(1)
        part = {"counts": outcome.counts, "problems": outcome.problems, "parts": self.size, "by": os.getpid()}
        write_part(self.prefix(number), part)
        return outcome


def sum_of(folder: Path, size: int) -> int:
    return sum(part["counts"]["sum"] for _, part in find_parts(folder, "square"))


@pytest.mark.slow
@given(size=st.integers(0, 12), tasks=st.integers(1, 5), data=st.data())
@settings(max_examples=30)
def test_tasks_share_all_parts(
    tmp_path_factory: pytest.TempPathFactory, size: int, tasks: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("squares")
    order = data.draw(st.permutations(range(tasks)))
    total, odd = 0.0, 0
    for task in order:
        problems = Problems(told=0)
        totals = run_parts(Squares(folder, size), TaskShard(task, tasks), problems)
        assert totals.num_cached == 0
        total += totals.counts.get("sum", 0)
        odd += problems.count
    assert (total, odd) == (sum(n * n for n in range(size)), size // 2)
    again = run_parts(Squares(folder, size), TaskShard(), Problems(told=0))
    assert (again.num_cached, again.counts.get("sum", 0), again.num_problems) == (size, total, size // 2)


def test_workers_make_the_parts_and_count(tmp_path: Path) -> None:
    problems = Problems(told=0)
    totals = run_parts(Squares(tmp_path, 7), TaskShard(workers=2), problems)
    assert (totals.counts["sum"], totals.parts, problems.count) == (91, 7, 3)
    makers = {part["by"] for _, part in find_parts(tmp_path, "square")}
    assert os.getpid() not in makers


class Fails(Squares):
    """Its part 2 cannot be made; part 3 kills its process."""

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        if number == 2:
            raise UserError("two is even")
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(number, tick)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two is even"):
        run_parts(Fails(tmp_path, 3), TaskShard(workers=2), Problems(told=0))
    with pytest.raises(UserError, match="a worker process ended"):
        run_parts(Fails(tmp_path, 5), TaskShard(index=1, size=2, workers=2), Problems(told=0))


def test_a_lease_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "part-00000"
    with lease(path) as first:
        assert first
        with lease(path) as second:  # another open file: as good as another process
            assert not second
        with (
            pytest.raises(UserError, match=rf"part-00000: is being written by process {os.getpid()} on "),
            require_lease(path),
        ):
            raise AssertionError
        assert lock_name(path).exists()
    assert not lock_name(path).exists()
    code = f"import time, sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
    code += (
        f"from ttt_dist.util.file_lock import lease\nwith lease(Path({str(path)!r})):\n    print('held', flush=True)\n"
    )
    code += "    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with lease(path) as ours:
            assert not ours
        holder.kill()
        holder.wait()
    with lease(path, wait=True) as ours:
        assert ours


def test_a_held_part_is_left_and_told(tmp_path: Path) -> None:
    with (
        lease(part_prefix(tmp_path, 1)),
        pytest.raises(UserError, match=r"part-00001: 1 part\(s\) are being written by process"),
    ):
        run_parts(Squares(tmp_path, 3), TaskShard(), Problems(told=0))
    assert [path.name for path in sorted(tmp_path.glob("part-*"))] == ["part-00000.json", "part-00002.json"]
    assert run_parts(Squares(tmp_path, 3), TaskShard(), Problems(told=0)).num_cached == 2


@pytest.mark.slow
def test_no_worker_outlives_a_killed_job(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom ttt_dist.jobs.runner import TaskShard, run_parts\n"
        "from ttt_dist.manifest.problems import Problems\nfrom tests.unit.test_jobs import Squares\n"
        f"if __name__ == '__main__':\n    run_parts(Squares(Path({str(tmp_path)!r}), 2, 120.0), TaskShard(workers=2), Problems())"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], cwd=ROOT) as job:
        deadline = time.monotonic() + 60
        while not all(lock_name(part_prefix(tmp_path, n)).exists() for n in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.kill()
        job.wait()
    for number in range(2):
        with lease(part_prefix(tmp_path, number), wait=True) as ours:
            assert ours
    totals = run_parts(Squares(tmp_path, 2), TaskShard(), Problems(told=0))
    assert totals.num_cached == 0


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    runner.add_arguments(parser)
    return parser.parse_args(given)


def parser_help() -> str:
    parser = argparse.ArgumentParser()
    runner.add_arguments(parser)
    return parser.format_help()


def test_shards_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    assert task_shard_of(arguments()) == TaskShard(0, 1, 1)
    assert task_shard_of(arguments("--array-index", "2", "--array-size", "3", "--workers", "4")) == TaskShard(2, 3, 4)
    assert task_shard_of(arguments("--task", "2", "--tasks", "3")) == TaskShard(2, 3)  # the names before
    assert "--tasks" not in parser_help()
    for given_flags, message in (
        (["--array-index", "1"], "give both"),
        (["--array-index", "3", "--array-size", "3"], r"numbered 0\.\.2"),
        (["--array-index", "-1", "--array-size", "3"], r"numbered 0\.\.2"),
        (["--workers", "0"], "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            task_shard_of(arguments(*given_flags))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(UserError, match="under mpirun"):
        task_shard_of(arguments("--array-index", "1", "--array-size", "3"))
    assert task_shard_of(arguments("--array-index", "1", "--array-size", "2")) == TaskShard(1, 2)  # which is its rank


def test_mpi_that_cannot_be_used_is_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("MV2_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("MV2_COMM_WORLD_RANK", "3")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(
        UserError, match="MPI cannot be used .* start each process with --array-index 3 --array-size 4"
    ) as it:
        task_shard_of(arguments())
    assert "\n" not in str(it.value)
    monkeypatch.setitem(
        sys.modules,
        "mpi4py",
        types.SimpleNamespace(MPI=types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(rank=0, size=1))),
    )
    with pytest.raises(
        UserError, match="has started process 3 of 4, which MPI takes for 0 of 1: mpi4py goes with another MPI"
    ):
        task_shard_of(arguments())


def test_tasks_of_srun_are_those_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    variables = {
        "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n1", "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert task_shard_of(arguments()) == TaskShard(2, 3)
    assert os.environ["LOCAL_RANK"] == "2"


@given(
    lines=st.lists(st.text("ab", max_size=4), min_size=1, max_size=20),
    last=st.booleans(),
    size=st.integers(1, 7),
    chunk=st.integers(1, 9),
)
def test_lines_are_cut_without_loss(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], last: bool, size: int, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "manifest.jsonl"
    content = "\n".join(lines) + "\n" * last
    path.write_text(content)
    if not content:
        with pytest.raises(UserError, match="is empty"):
            cut_lines(path, size)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK_BYTES", chunk)
        ranges = cut_lines(path, size)
    assert b"".join(one.read() for one in ranges).decode() == content
    expected = [(f"{path}:{number}", line.encode()) for number, line in enumerate(lines, 1) if line]
    assert [found for one in ranges for found in one.lines()] == expected
    assert [one.first for one in ranges] == list(range(1, 1 + size * len(ranges), size))
    assert sum(one.num_lines for one in ranges) == content.count("\n") + (not content.endswith("\n"))


def test_a_manifest_that_shrinks_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("a\n")
    with pytest.raises(UserError, match="has changed while it was read"):
        LineRange(path=tmp_path / "m.jsonl", start=0, stop=9, first=1, num_lines=2).read()


def test_parts_that_are_missing_damaged_or_mixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no complete part-\*\.json"):
        find_parts(tmp_path, "square")
    run_parts(Squares(tmp_path, 3), TaskShard(), Problems(told=0))
    assert sum_of(tmp_path, 3) == 5
    path = tmp_path / "part-00001.json"
    content = path.read_text()
    path.unlink()
    with pytest.raises(UserError, match=r"part-00001\.json: missing, there are to be 3 parts"):
        find_parts(tmp_path, "square")
    path.write_text(content.replace('"sum": 1', '"sum": 2'))
    with pytest.raises(UserError, match=r"part-00001\.json: is damaged"):
        find_parts(tmp_path, "square")
    write_part(tmp_path / "part-00001", {"counts": {}, "problems": [], "parts": 4})
    with pytest.raises(UserError, match="one of 4 parts, others of 3"):
        find_parts(tmp_path, "square")
