"""Names that no file can have, in what others wrote and on the command line: a line, never a traceback."""

from pathlib import Path

import pytest

from tests.golden import commands
from ttt_dist.audio.registry import load_codec
from ttt_dist.data import metadata
from ttt_dist.evaluation.context import locate
from ttt_dist.model.hf.tensor_files import TensorFolder
from ttt_dist.util.console import main_guard
from ttt_dist.util.errors import UserError

LONG = "x" * 300
GOLDEN = Path(commands.__file__).with_name("files")


def test_what_the_system_says_of_a_path_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        (LONG, "File name too long; give a shorter one"),
        ("a/b", "Not a directory; a part of this path"),
        ("loop", "symbolic links; its links lead in a circle"),
    ):
        with pytest.raises(SystemExit) as end:
            main_guard(lambda place=tmp_path / name: place.read_bytes())  # type: ignore[misc]
        said = capsys.readouterr().err
        assert end.value.code == 1 and said.startswith(f"error: {tmp_path / name}: ") and words in said
        assert said.count("\n") == 1


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    for error in (OSError(5, "Input/output error"), OSError(36, "File name too long")):
        with pytest.raises(OSError, match=error.strerror):
            main_guard(lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]


@pytest.mark.parametrize("name", [LONG, "\u4e2d" * 90, "half \ud800"])
def test_the_json_of_a_shard(name: str) -> None:
    with pytest.raises(UserError, match=r"a\.json: '(shards|files)' is .*; write it again"):
        metadata.require_shape({"shards": [name]}, Path("a.json"), "write it again")
    with pytest.raises(UserError, match=r"a\.json: 'files' is"):
        metadata.require_shape({"files": {name: {"bytes": 1}}}, Path("a.json"), "write it again")


def test_the_index_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{LONG}"}}}}')
    with pytest.raises(UserError, match="x: missing"):
        TensorFolder(tmp_path)


def test_the_weights_of_a_codec(tmp_path: Path) -> None:
    text = (GOLDEN / "export" / "codec" / "codec.json").read_text().replace("{", f'{{"weights": "{LONG}", ', 1)
    (tmp_path / "codec.json").write_text(text)
    with pytest.raises(UserError, match="x; put them back there"):
        load_codec(tmp_path)


def test_an_item_of_an_evaluation(tmp_path: Path) -> None:
    assert locate({"audio": LONG}, tmp_path, tmp_path) == {"audio": LONG}
