"""What DeepSpeed saves by our engine: whole files with their sums, and a failure kept for after the save."""

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo

from ttt_dist.checkpoint import engine as module
from ttt_dist.checkpoint.engine import ChecksummingEngine
from ttt_dist.checkpoint.manifest import (
    FileChecksum,
    file_checksum,
    read_manifest,
    require_checksums,
    require_whole,
    write_manifest,
    write_manifest_of_folder,
)
from ttt_dist.util.errors import UserError

INFO = CheckpointCommitInfo(tag="step-1", save_dir=".", save_latest=False)


def test_files_of_a_save_are_read_back_and_summed(tmp_path: Path) -> None:
    storage = ChecksummingEngine()
    storage.create(INFO)
    storage.makedirs(str(tmp_path / "step-1"))
    path = tmp_path / "step-1" / "model_states.pt"
    storage.save({"weights": torch.arange(3.0), "step": 7}, str(path))
    assert storage.commit(INFO)
    assert storage.files == {"model_states.pt": file_checksum(path)}
    state = storage.load(str(path))
    assert state["step"] == 7 and torch.equal(state["weights"], torch.arange(3.0))
    storage.create(INFO)
    assert storage.files == {}, "files of the save before count for the next one"


def test_after_a_failure_nothing_more_is_written_until_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised at once it would leave the other processes waiting: it is what the commit refuses by."""
    full = OSError(28, "No space left on device")
    storage = ChecksummingEngine()
    storage.create(INFO)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_state", lambda *_: (_ for _ in ()).throw(full))
        storage.save({}, str(tmp_path / "a.pt"))
    storage.save({}, str(tmp_path / "b.pt"))
    assert not storage.commit(INFO)
    assert isinstance(storage.failure, UserError) and "a.pt: no space left" in str(storage.failure)
    assert list(tmp_path.iterdir()) == []
    storage.create(INFO)
    storage.save({}, str(tmp_path / "c.pt"))
    assert storage.commit(INFO) and (tmp_path / "c.pt").is_file()


def test_a_manifest_finds_what_is_missing_short_or_changed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.pt").write_bytes(b"12345")
    (tmp_path / "b.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"not complete, it has no manifest.json"):
        require_whole(tmp_path)
    write_manifest_of_folder(tmp_path)
    files = require_whole(tmp_path)
    assert set(files) == {"deep/a.pt", "b.pt"} and files["deep/a.pt"].bytes == 5
    require_checksums(tmp_path, files, files)
    (tmp_path / "deep" / "a.pt").write_bytes(b"12346")
    assert require_whole(tmp_path) == files  # the quick check reads no contents
    with pytest.raises(UserError, match=r"a.pt: checksum differs"):
        require_checksums(tmp_path, files, ["deep/a.pt"])
    (tmp_path / "deep" / "a.pt").write_bytes(b"123456")
    with pytest.raises(UserError, match=r"a.pt: has 6 bytes instead of 5"):
        require_whole(tmp_path)
    (tmp_path / "b.pt").unlink()
    with pytest.raises(UserError, match=r"b.pt: missing"):
        require_whole(tmp_path)


def test_a_manifest_is_read_as_it_was_written_or_refused(tmp_path: Path) -> None:
    files = {"z": FileChecksum(1, "0" * 64), "a": FileChecksum(2, "1" * 64)}
    write_manifest(tmp_path, files)
    assert read_manifest(tmp_path) == files and list(read_manifest(tmp_path)) == ["a", "z"]
    for content in ("", "[]", '{"files": {"a": {}}}', '{"files": {"a": {"bytes": "x", "sha256": ""}}}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="not a readable manifest"):
            read_manifest(tmp_path)
