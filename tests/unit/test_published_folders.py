"""A published codec's folder: what decides its codes decides its hash, and what is missing is named."""

import json
from pathlib import Path

import pytest

from ttt_dist.audio.codecs.published import CONFIG, INDEX, folder_hash, read_config, weight_files
from ttt_dist.util.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text('{"hop": 320}')
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    weights = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weights}))
    return tmp_path


def test_the_index_decides_which_files_are_weights(folder: Path) -> None:
    (folder / "model.safetensors").touch()
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]
    (folder / INDEX).unlink()
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_the_hash_is_of_all_that_decides_the_codes_and_of_nothing_else(folder: Path) -> None:
    first = folder_hash("mimi", folder, 8)
    (folder / "README.md").write_text("about")
    assert folder_hash("mimi", folder, 8) == first
    others = [folder_hash("dac", folder, 8), folder_hash("mimi", folder, 4), folder_hash("mimi", folder, 8, "bf16")]
    (folder / "b.safetensors").write_bytes(b"other")
    others.append(folder_hash("mimi", folder, 8))
    (folder / CONFIG).write_text('{"hop": 640}')
    others.append(folder_hash("mimi", folder, 8))
    assert len({first, *others}) == 6


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"x": "../a.safetensors"}}', r"names a file outside its folder, \.\./a"),
        ('{"weight_map": {"x": "c.safetensors"}}', r"c.safetensors: missing; download"),
        ("{}", "not a readable index"),
        ("[]", "is list, not a JSON object"),
    ],
)
def test_an_index_that_lies_is_refused(folder: Path, index: str, message: str) -> None:
    (folder / INDEX).write_text(index)
    with pytest.raises(UserError, match=message):
        weight_files(folder)


def test_a_config_is_an_object_or_refused(folder: Path) -> None:
    assert read_config(folder) == {"hop": 320}
    (folder / CONFIG).write_text("[1]")
    with pytest.raises(UserError, match=r"config.json: is list, not a JSON object"):
        read_config(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=r"config.json: missing; name the folder"):
        read_config(folder)
