"""Commands of benchmarks/: what could not be written at their end, or is in the way, is told in a line at their beginning."""

import argparse
from pathlib import Path

import pytest

from benchmarks import manifests
from benchmarks.result_file import result_path
from ttt_dist.util.console import main_guard


def test_a_result_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    assert result_path(str(tmp_path / "new.md")) == tmp_path / "new.md"
    for path, told in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "no" / "new.md", "make it, or name another"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            result_path(str(path))


def test_a_work_folder_that_is_there_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["manifests", "--work", str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back afterwards
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main_guard(manifests.main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: File exists; remove it, or name another\n"
