"""Which checkpoints there are, which are passed over, which are kept. What is in them: tests/distributed."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.structures import tiny_layout
from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.manifest import MANIFEST, write_manifest_of_folder
from ttt_dist.config.loader import to_dict
from ttt_dist.config.objective import Objective, ObjectiveStage
from ttt_dist.config.run import CheckpointConfig, Config
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 3, 6 and 9 with some files each, and what an unfinished save left."""
    for step in (3, 6, 9):
        make(tmp_path, step)
    (tmp_path / ".step-00000012.tmp").mkdir()
    return tmp_path


def make(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("weights.pt", "optim.pt"):
        (path / name).write_bytes(f"{name} {step}".encode() * 100)
    config = {name: {} for name in ("model", "objective", "data", "train")}
    metadata = {"step": step, "layout": {}, "config": config, "world_size": 1, "zero_stage": 0}
    (path / manager.METADATA).write_text(json.dumps(metadata))
    write_manifest_of_folder(path)
    return path


def truncate(path: Path) -> None:
    os.truncate(path / "optim.pt", 100)


def remove_a_file(path: Path) -> None:
    (path / "weights.pt").unlink()


def remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def break_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {"a": 3}}')


def flip(path: Path) -> None:
    data = bytearray((path / "optim.pt").read_bytes())
    data[500] ^= 1
    (path / "optim.pt").write_bytes(data)


def blank_metadata(path: Path) -> None:
    (path / manager.METADATA).write_bytes(b" " * (path / manager.METADATA).stat().st_size)


def metadata_of_another_kind(path: Path) -> None:
    """Whole by its manifest."""
    (path / manager.METADATA).write_text('{"step": 9, "config": []}')
    write_manifest_of_folder(path)


def metadata_without_bytes_of_text(path: Path) -> None:
    (path / manager.METADATA).write_bytes(b"\xff\xfe{}")
    write_manifest_of_folder(path)


def endless_size(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {"optim.pt": {"bytes": Infinity, "sha256": ""}}}')


def a_name_that_no_file_has(path: Path) -> None:
    (path / MANIFEST).write_text(json.dumps({"files": {"a" * 300: {"bytes": 1, "sha256": ""}}}))


def nothing_in_the_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {}}')


DAMAGES = [
    truncate, remove_a_file, remove_manifest, break_manifest, blank_metadata, metadata_of_another_kind,
    metadata_without_bytes_of_text, endless_size, a_name_that_no_file_has, nothing_in_the_manifest,
]  # fmt: skip


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_the_newest_comes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(manager.list_checkpoints(folder)) == ["step-00000009", "step-00000006", "step-00000003"]
    assert manager.latest(folder) == folder / "step-00000009"
    assert manager.list_checkpoints(folder / "none") == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_complete_is_passed_over_and_told(
    damage: Callable[[Path], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder / "step-00000009")
    assert manager.latest(folder) == folder / "step-00000006"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: skipping a checkpoint: {folder / 'step-00000009'}")
    damage(folder / "step-00000003")  # older than the newest complete one: of no interest
    assert manager.latest(folder) == folder / "step-00000006"
    assert len(capsys.readouterr().err.splitlines()) == 1
    damage(folder / "step-00000006")
    with pytest.raises(UserError, match="holds no complete checkpoint .* remove the folder to start anew"):
        manager.latest(folder)


def test_changed_contents_are_found_before_they_are_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(folder / "step-00000009")
    candidates = manager.list_checkpoints(folder)
    assert len(candidates) == 3  # sizes are right
    assert manager.first_whole(candidates) == folder / "step-00000006"
    assert "step-00000009/optim.pt: checksum differs" in capsys.readouterr().err
    flip(folder / "step-00000006")
    flip(folder / "step-00000003")
    with pytest.raises(UserError, match="no other checkpoint is whole; remove the folder to start anew"):
        manager.first_whole(candidates)
    assert manager.first_whole([]) is None


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_to_any_file_leads_to_the_next_one(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        older, newest = make(folder, 3), make(folder, 6)
        path = newest / data.draw(st.sampled_from(sorted(file.name for file in newest.iterdir())))
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content) - 1))
        damaged = (
            content[:start]
            + data.draw(st.binary(min_size=1, max_size=9))
            + content[start + data.draw(st.integers(0, 9)) :]
        )
        path.write_bytes(damaged)
        first = manager.first_whole(manager.list_checkpoints(folder))
        # What JSON and SHA-256 do not see is no damage: white space of the manifest.
        assert first == older or damaged == content or (path.name == MANIFEST and first == newest)
        if first == newest:
            assert manager.step_of(newest) == 6


def test_a_copy_beside_the_checkpoints_is_none_of_them(folder: Path) -> None:
    for name in ("step-00000009.bak", "step-final", "step-00000006 (copy)"):
        shutil.copytree(folder / "step-00000009", folder / name)
    assert names(manager.list_checkpoints(folder)) == ["step-00000009", "step-00000006", "step-00000003"]
    manager._drop(folder / "step-00000009", CheckpointConfig(keep_last=1, keep_every=5)).join()
    assert (folder / "step-final").is_dir() and not (folder / "step-00000006").exists()


def test_resume_names_a_checkpoint_a_run_or_its_checkpoints(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert manager.resolve_resume_path(folder / "step-00000003") == [folder / "step-00000003"]
    assert manager.resolve_resume_path(folder)[0] == folder / "step-00000009"
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(folder, run / "checkpoints")
    assert manager.resolve_resume_path(run)[0] == run / "checkpoints" / "step-00000009"
    with pytest.raises(UserError, match="no checkpoint here"):
        manager.resolve_resume_path(run / "export")
    truncate(folder / "step-00000003")
    with pytest.raises(UserError, match=r"optim\.pt: has 100 bytes instead of"):
        manager.resolve_resume_path(folder / "step-00000003")


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (0, 0, [2, 4, 6, 8, 10]),
        (1, 0, [10]),
        (2, 0, [8, 10]),
        (5, 0, [2, 4, 6, 8, 10]),
        (2, 4, [4, 8, 10]),
        (1, 3, [6, 10]),
    ],
)
def test_keeping(keep_last: int, keep_every: int, kept: list[int], tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        newest = make(tmp_path, step)
        manager._drop(newest, CheckpointConfig(keep_last=keep_last, keep_every=keep_every)).join()
    assert [int(path.name[5:]) for path in sorted(tmp_path.iterdir())] == kept


OLD_OBJECTIVE = {
    "preset": "corrected", "kind": "ttt", "p_mix": 0.3, "p_prefix": 0.3, "p_trunc": 0.5, "mix_unit": "sample",
    "prompt_audio": "bidirectional", "normalisation": "sample",
}  # fmt: skip
AR_FIRST = [ObjectiveStage(from_step=0, kind="ar"), ObjectiveStage(from_step=3)]


CASES = {
    "an old run as it was": (OLD_OBJECTIVE, Objective(preset="paper"), ""),
    "an old run by the new default": (
        OLD_OBJECTIVE,
        Objective(),
        r"objective was ttt, masking bernoulli, .*, now ttt, mask",
    ),
    "a stage from the resumed step on": ({"kind": "ar"}, Objective(stages=AR_FIRST), ""),
    "another, later stage": (
        asdict(Objective(stages=[*AR_FIRST, ObjectiveStage(from_step=5)])),
        Objective(stages=AR_FIRST),
        "",
    ),
    "settings that no step had": (asdict(Objective(stages=AR_FIRST)), Objective(stages=AR_FIRST, p_mix=0.1), ""),
    "a border that was passed": (
        asdict(Objective(stages=[AR_FIRST[0], ObjectiveStage(from_step=2)])),
        Objective(stages=AR_FIRST),
        r"objective from step 2 was ttt, .*, now unset",
    ),
}


@pytest.mark.parametrize(("there", "here", "told"), CASES.values(), ids=CASES.keys())
def test_another_objective_is_told_where_it_decided_steps_that_are_done(
    there: dict, here: Objective, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, config = tiny_layout(), Config(objective=here, deepspeed=str(ROOT / "ds_configs" / "zero1.json"))
    run = manager.CheckpointMetadata.of_run(config, layout, 1)
    metadata = {
        "layout": layout.to_dict(), "config": {**run.config, "objective": there}, "step": 3, "world_size": 1, "zero_stage": 1,
    }  # fmt: skip
    (tmp_path / manager.METADATA).write_text(json.dumps(metadata))
    manager.require_resumable(tmp_path, run)
    warnings = capsys.readouterr().err
    if told:
        assert re.search(f"{told}.*: the run goes on, but not as it would have", warnings)
    assert len(warnings.splitlines()) == bool(told)


def test_what_zero_3_has_cut_otherwise_is_dealt_out_anew(tmp_path: Path) -> None:
    """DeepSpeed would load it piece by piece, and fails."""
    run = manager.CheckpointMetadata(tiny_layout(), to_dict(Config()), 2, zero_stage=3, sub_group_size=10**9)
    (tmp_path / manager.METADATA).write_text(json.dumps(manager.metadata_of(1, run, {})))
    assert manager.has_layout_of(tmp_path, run)
    assert not manager.has_layout_of(tmp_path, replace(run, sub_group_size=10**6))


def test_what_unfinished_saves_left_goes_and_broken_checkpoints_count_for_nothing(folder: Path) -> None:
    remove_manifest(folder / "step-00000006")
    (folder / ".gone-step-00000001").mkdir()  # by a process that was killed
    manager._drop(folder / "step-00000009", CheckpointConfig(keep_last=2)).join()
    assert sorted(names(list(folder.iterdir()))) == ["step-00000003", "step-00000009"]


def test_a_save_first_frees_what_a_killed_process_was_removing(folder: Path) -> None:
    (folder / ".gone-step-00000001" / "more").mkdir(parents=True)
    aside = folder / ".step-00000012.tmp"
    manager._make_empty(aside)
    assert aside.is_dir()
    assert not list(folder.glob(".gone-*"))


def test_space_and_access_are_checked_where_the_run_will_write(tmp_path: Path) -> None:
    manager.require_space(tmp_path / "new" / "run", 1000)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="a checkpoint takes .* GB, but .* GB are free"):
        manager.require_space(tmp_path / "new" / "run", 10**15)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(UserError, match=f"run_dir={tmp_path}/run: {tmp_path} cannot be written"):
        manager.require_space(tmp_path / "run", 1000)
