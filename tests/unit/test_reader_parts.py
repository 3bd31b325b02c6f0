"""What readers of corpora share: files of a folder in one order, each once; lengths of recordings and of their pieces."""

import os
from pathlib import Path

import pytest

from data_prep.readers.common import (
    add_duration,
    clip_seconds,
    is_there,
    lines_of,
    require_file,
    require_folder,
    walk,
)
from tests.corpora import errors, record
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError


def test_files_come_in_one_order_and_once(tmp_path: Path) -> None:
    for name in ("b/2.wav", "b/10.wav", "a/x.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b" / "round").symlink_to(tmp_path, target_is_directory=True)  # a walk that follows it has no end
    problems = Problems(told=0)
    names = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path, problems)]
    assert names == ["c.txt", "a/x.txt", "b/10.wav", "b/2.wav"]
    assert not problems.count


def test_a_name_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")).touch()
    (tmp_path / "a.wav").touch()
    problems = Problems(told=0)
    assert [path.name for path in walk(tmp_path, problems)] == ["a.wav"]
    assert "its name is not UTF-8; rename it" in errors(problems)[0]


def test_what_the_source_must_be(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n\ntwo\n")
    assert require_folder(tmp_path) == tmp_path and require_file(file) == file
    for call, path in ((require_folder, file), (require_file, tmp_path)):
        with pytest.raises(UserError, match="correct --source"):
            call(path)
    problems = Problems(told=0)
    assert list(lines_of(file, problems)) == [(f"{file}:1", "one"), (f"{file}:3", "two")]
    assert list(lines_of(tmp_path / "gone.txt", problems)) == []
    assert not is_there(tmp_path / "gone.wav", problems, "a.tsv:7")
    assert errors(problems)[-1].startswith("a.tsv:7: ") and problems.count == 2


def test_lengths_of_recordings_pieces_and_joined_ones(tmp_path: Path) -> None:
    wav = str(record(tmp_path / "a.wav", seconds=0.5))
    assert clip_seconds({"audio": wav}, "x:1") == 0.5
    assert clip_seconds({"audio": wav, "offset": 0.2}, "x:1") == pytest.approx(0.3)
    assert clip_seconds({"audio": wav, "offset": 0.2, "duration": 0.1}, "x:1") == 0.1
    assert clip_seconds({"audio": wav, "offset": 0.3, "duration": 0.205}, "x:1") == 0.205  # corpora round their times
    assert clip_seconds({"audio": [wav, wav], "gaps": [0.25], "tail": 0.1}, "x:1") == pytest.approx(1.35)


@pytest.mark.parametrize(("offset", "duration"), [(0.3, 0.3), (0.6, None), (0.1, 0.0)])
def test_a_piece_outside_its_recording_is_reported(tmp_path: Path, offset: float, duration: float | None) -> None:
    entry = {"audio": str(record(tmp_path / "a.wav", seconds=0.5)), "offset": offset, "duration": duration}
    problems = Problems(told=0)
    assert not add_duration(entry, problems, "x:1")
    assert errors(problems)[0].startswith(f"x:1: the piece at offset {offset} s")
    assert "bad audio" in problems.errors
