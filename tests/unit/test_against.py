"""benchmarks/against.py: a toy workload in a tiny git repository, run in two of its revisions."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks import against
from benchmarks.against import THIS, Run, Workload, choose, measure, ratios, worktree
from benchmarks.workloads import train_step
from ttt_dist.config.loader import load_config
from ttt_dist.config.objective import Objective
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

TOY = """
import json, sys
from pathlib import Path
from toy import SPEED, MEGABYTES

def prepare(folder):
    (folder / "input").write_text("2")

folder = Path(sys.argv[sys.argv.index("--folder") + 1])
if "--prepare" in sys.argv:
    prepare(folder)
    sys.exit()
kept = bytearray(MEGABYTES << 20)
if "fails" in sys.argv:
    sys.exit("first line\\nno such toy")
print("something else")
print("nothing" if "mute" in sys.argv else json.dumps({"speed": SPEED * int((folder / "input").read_text())}))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a module: a slow one that takes much memory, and one that is three times as fast."""
    root = tmp_path / "repository"
    root.mkdir()
    who = ("-c", "user.name=toy", "-c", "user.email=toy@localhost", "-c", "commit.gpgsign=false")
    against.git(root, "init", "--quiet")
    for speed, megabytes in ((2, 300), (6, 100)):
        (root / "toy.py").write_text(f"SPEED, MEGABYTES = {speed}, {megabytes}\n")
        against.git(root, "add", ".")
        against.git(root, *who, "commit", "--quiet", "-m", f"speed {speed}")
    return root


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for inputs; the workloads' folder holds the toy."""
    for name in ("workloads", "inputs"):
        (tmp_path / name).mkdir()
    (tmp_path / "workloads" / "toy_speed.py").write_text(TOY)
    monkeypatch.setattr(against, "FOLDER", tmp_path / "workloads")
    return tmp_path / "inputs"


@pytest.mark.slow
def test_both_revisions_are_measured_and_the_worktree_goes(repository: Path, inputs: Path) -> None:
    with worktree(repository, "HEAD~1") as other:
        assert "SPEED, MEGABYTES = 2" in (other / "toy.py").read_text()
        pairs = measure("toy", Workload("toy_speed.py", runs=2), {THIS: repository, "HEAD~1": other}, inputs)
    assert [(this.speed, that.speed) for this, that in pairs] == [(12, 4)] * 2
    figures = ratios(pairs)
    assert figures["speed"] == 3 and figures["speeds"] == [3, 3] and figures["pairs"] == 2
    assert 0.3 < figures["memory"] < 0.5  # 100 MB and 300 MB, and the interpreter's own, whatever this process has
    assert not other.exists()
    assert against.git(repository, "worktree", "list").count("\n") == 0


def test_ratios_are_medians_over_pairs() -> None:
    pairs = [(Run(8.0, 100), Run(4.0, 200)), (Run(9.0, 100), Run(3.0, 100)), (Run(50.0, 300), Run(5.0, 100))]
    figures = ratios(pairs)
    assert (figures["speed"], figures["speeds"]) == (3, [2, 10])
    assert (figures["memory"], figures["memories"]) == (1, [0.5, 3])
    assert (figures["median_speeds"], figures["median_bytes"]) == ([9, 4], [100, 100])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fails", "^toy, this build: ended with exit status 1: no such toy$"),
        ("mute", "^toy, this build: the last line is no .*: nothing$"),
    ],
)
def test_a_failing_workload_is_named(repository: Path, inputs: Path, argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure("toy", Workload("toy_speed.py", (argument,)), {THIS: repository, "other": repository}, inputs)


def test_the_worktree_goes_when_interrupted(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), worktree(repository, "HEAD") as other:
        raise KeyboardInterrupt
    assert not other.exists() and against.git(repository, "worktree", "list").count("\n") == 0


def test_an_unknown_revision_is_refused(repository: Path) -> None:
    with pytest.raises(UserError, match="^git rev-parse: "), worktree(repository, "no-such-revision"):
        pass


def test_workloads_are_chosen_in_the_tables_order(inputs: Path) -> None:
    table = {"a": Workload("toy_speed.py", runs=4), "b": Workload("absent.py"), "c": Workload("toy_speed.py")}
    chosen = choose(table, ["c", "a"], None)
    assert list(chosen) == ["a", "c"] and chosen["a"].runs == 4
    assert choose(table, ["a"], 1)["a"].runs == 1
    with pytest.raises(UserError, match="^b: benchmarks/workloads/absent.py is absent"):
        choose(table, None, None)


def test_the_training_step_is_measured_with_an_objective_that_older_builds_know(tmp_path: Path) -> None:
    """The demo's recipe may get settings that they refuse."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(train_step.settings("demo", tmp_path)))
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["objective"]
    assert written.keys() <= {"preset", "kind", "p_mix", "p_prefix", "p_trunc"} and written["preset"] == "corrected"
    assert (
        load_config(tmp_path / "config.yaml").objective == Objective(preset="paper", p_mix=written["p_mix"]).resolved()
    )


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "workloads").glob("*.py")), ids=lambda path: path.stem)
def test_workloads_use_modules_that_the_other_build_has(path: Path) -> None:
    """Inputs are prepared by this build; whatever else a workload imports of ours, it takes from the build under test."""
    other = "f7f6f4f"
    if subprocess.run(["git", "cat-file", "-e", other], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"the history here does not reach {other}")
    tree = ast.parse(path.read_text(encoding="utf8"))
    measured = [node for node in tree.body if not isinstance(node, ast.FunctionDef) or node.name == "main"]
    modules = {
        node.module
        for part in measured
        for node in ast.walk(part)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("ttt_dist", "data_prep")
    }
    there = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", other], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {f"{module.replace('.', '/')}.py" for module in modules} <= set(there.stdout.splitlines())
