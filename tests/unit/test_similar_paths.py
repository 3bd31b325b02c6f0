"""A mistyped path is answered with the folder that was meant, or with the steps there are, wherever one names a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ttt_dist.checkpoint.conversion import export_checkpoint, reshard
from ttt_dist.checkpoint.export import model_folder
from ttt_dist.checkpoint.inspection import inspect_folder
from ttt_dist.checkpoint.manager import METADATA, resolve_resume_path
from ttt_dist.model.hf.folder import load_folder
from ttt_dist.util.errors import UserError
from ttt_dist.util.hub_names import require_folder
from ttt_dist.util.similar_paths import remedy_for


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for step in (20, 40, 60):
        (tmp_path / "runs/mine/checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "runs/mine/export").mkdir()
    (tmp_path / "runs/other-40").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("mine/checkpoints/step-60", "mine/checkpoints/step-00000060"),
        ("mine/checkpoints/60", "mine/checkpoints/step-00000060"),
        ("mine/checkpoints/step_0000060", "mine/checkpoints/step-00000060"),
        ("mine/checkpoint/step-40", "mine/checkpoints/step-00000040"),
        ("mien/exports", "mine/export"),
    ],
)
def test_the_folder_that_was_meant(asked: str, meant: str, runs: Path) -> None:
    assert remedy_for(runs / asked, "else") == f"did you mean {runs / meant}?"


def test_another_step_is_not_what_was_meant(runs: Path) -> None:
    folder = runs / "mine/checkpoints"
    assert remedy_for(folder / "step-61", "else") == f"{folder} has step-00000020, step-00000040, step-00000060"
    for step in range(61, 65):
        (folder / f"step-{step:08d}").mkdir()
    assert remedy_for(folder / "step-80", "else").startswith(f"{folder} has ..., step-00000060, step-00000061")


@pytest.mark.parametrize("asked", ["mine", "quite/unlike", "mine/zzz", "x" * 300, "mine/\0", ""])
def test_nothing_is_like_it(asked: str, runs: Path) -> None:
    assert remedy_for(runs / asked, "else") == "else"


def test_a_path_from_the_current_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "mine/checkpoints")
    assert remedy_for(Path("step-20"), "else") == "did you mean step-00000020?"


ASKING: dict[str, Callable[[Path], object]] = {
    "--resume": resolve_resume_path,
    "reshard": lambda path: reshard(path, path / "out"),
    "export-hf": lambda path: export_checkpoint(path, path / "out"),
    "inspect": inspect_folder,
    "import-hf": lambda path: require_folder(f"--source {path}", path, ""),
    "generate, serve": lambda path: load_folder(model_folder(path)),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_all_who_take_a_checkpoint_tell_it(ask: Callable[[Path], object], runs: Path) -> None:
    folder = runs / "mine/checkpoints"
    with pytest.raises(UserError, match=rf"step-60: no .*; did you mean {folder}/step-00000060\?$"):
        ask(folder / "step-60")


def test_a_folder_of_checkpoints_is_no_model(runs: Path) -> None:
    (runs / "mine/checkpoints/step-00000060" / METADATA).touch()
    with pytest.raises(UserError, match="mine/checkpoints: holds checkpoints; name one of them"):
        model_folder(runs / "mine/checkpoints")
