"""Folders that others may write to as well: what lies there under a name of ours is neither written through nor believed."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ttt_dist.checkpoint import manager
from ttt_dist.data.indexed import new_builder
from ttt_dist.model.hf.folder import new_folder
from ttt_dist.util import atomic_files
from ttt_dist.util.atomic_files import (
    atomic_write,
    copy_folder,
    open_new,
    remove_dead_leftovers,
    remove_leftovers,
    temporary_name,
)
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import holder, lease, lock_name

HOST = socket.gethostname()
DEAD = 2**22 + 1  # above the highest number that Linux gives


def old_name(path: Path) -> Path:
    """What this process called a temporary file before such names were random."""
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that somebody would like us to overwrite."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def test_no_link_is_written_through(shared: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared / "out.json"
    old_name(path).symlink_to(victim)
    with atomic_write(path) as file:
        file.write("ours")
    monkeypatch.setattr(atomic_files.secrets, "token_hex", lambda _: "guessed")  # even where the name is known
    temporary_name(path).symlink_to(victim)
    with atomic_write(path) as file:
        file.write("again")
    for write in (lambda at: open_new(at).close(), lambda at: new_builder(at, multimodal=False).data_file.close()):
        temporary_name(path).unlink(missing_ok=True)
        temporary_name(path).symlink_to(victim)
        write(temporary_name(path))
        assert not temporary_name(path).is_symlink()
    assert (path.read_text(), victim.read_text()) == ("again", "precious")


def test_names_are_not_known_before(shared: Path) -> None:
    path = shared / "out.json"
    seen = []
    for _ in range(3):
        with atomic_write(path):
            (found,) = [name for name in os.listdir(shared) if name.endswith(".tmp")]
            seen.append(found)
    assert len(set(seen)) == 3 and old_name(path).name not in seen
    assert temporary_name(path) == temporary_name(path) != old_name(path)  # one for all steps of a longer job
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_leftovers_of_both_forms_are_removed_and_links_not_followed(shared: Path, victim: Path) -> None:
    path = shared / "out.json"
    folder = shared / f".out.json.{HOST}.{DEAD}.tmp"
    folder.mkdir()
    (shared / f".out.json.{HOST}.{DEAD}.abcdef.tmp").write_text("half")
    (shared / f".out.json.other.host.{DEAD}.tmp").write_text("half")
    (shared / ".out.json.link.tmp").symlink_to(victim.parent)
    remove_leftovers(path)
    assert (os.listdir(shared), victim.read_text()) == ([], "precious")


def test_leftovers_of_living_processes_stay(shared: Path) -> None:
    path = shared / "out.json"
    dead = [f".out.json.{HOST}.{DEAD}{token}.tmp" for token in ("", ".abcdef")]
    alive = [f".out.json.{HOST}.{os.getpid()}{token}.tmp" for token in ("", ".abcdef")] + [
        f".out.json.elsewhere.{DEAD}.tmp"
    ]
    for name in dead + alive:
        (shared / name).write_text("half")
    remove_dead_leftovers(path)
    assert sorted(os.listdir(shared)) == sorted(alive)


def test_no_folder_is_filled_through_a_link(shared: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files.secrets, "token_hex", lambda _: "guessed")
    source, target = shared / "source", shared / "target"
    source.mkdir()
    (source / "victim").write_text("ours")
    temporary_name(target).symlink_to(victim.parent)
    with pytest.raises(UserError, match="target"):
        copy_folder(source, target)
    temporary_name(target).unlink(missing_ok=True)
    copy_folder(source, target)
    assert ((target / "victim").read_text(), victim.read_text()) == ("ours", "precious")
    model = shared / "model"
    for name in (temporary_name(model), shared / ".model.old.tmp"):
        name.symlink_to(victim.parent)
        with new_folder(model) as place:
            (place / "victim").write_text("ours")
        assert (model / "victim").read_text() == "ours" and not model.is_symlink()
    assert victim.read_text() == "precious"


def test_a_checkpoint_is_saved_over_planted_links(shared: Path, victim: Path) -> None:
    aside = shared / ".step-00000001.tmp"
    aside.symlink_to(victim.parent)
    manager._make_empty(aside)
    assert aside.is_dir() and not aside.is_symlink()
    (shared / "step-00000001").mkdir()
    (shared / ".gone-step-00000001").symlink_to(victim.parent)
    manager._hide(shared / "step-00000001")
    assert not (shared / ".gone-step-00000001").is_symlink()
    assert victim.read_text() == "precious"


def plant_link(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim)


def plant_hard_link(lock: Path, victim: Path) -> None:
    os.link(victim, lock)


def plant_pipe(lock: Path, _: Path) -> None:
    os.mkfifo(lock)


def plant_folder(lock: Path, _: Path) -> None:
    lock.mkdir()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_pipe, plant_folder])
def test_a_lock_is_a_file_of_its_own(shared: Path, victim: Path, plant: Callable[[Path, Path], None]) -> None:
    path = shared / "out"
    plant(lock_name(path), victim)
    with pytest.raises(UserError, match=r"\.out\.lock|out: cannot be written"), lease(path):
        pass
    assert victim.read_text() == "precious"
    assert "precious" not in holder(path)


def test_a_lock_that_points_nowhere_makes_no_file(shared: Path, tmp_path: Path) -> None:
    lock_name(shared / "out").symlink_to(tmp_path / "made")
    with pytest.raises(UserError, match=r"remove it"), lease(shared / "out"):
        pass
    assert not (tmp_path / "made").exists()


def test_what_a_lock_says_is_one_short_line(shared: Path) -> None:
    lock_name(shared / "out").write_bytes(b"\x1b[2J\n" * 10_000 + b"\xff")
    assert len(holder(shared / "out")) < 300 and holder(shared / "out").isprintable()
    with lease(shared / "out") as ours:
        assert ours and holder(shared / "out") == f"process {os.getpid()} on {HOST}"
