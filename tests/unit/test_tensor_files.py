"""Folders of safetensors: what the writer writes, the reader and safetensors itself read, piece by piece."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ttt_dist.model.hf import tensor_files
from ttt_dist.model.hf.tensor_files import INDEX, SINGLE, TensorFolder, TensorWriter
from ttt_dist.util.errors import UserError

WEIGHTS = {f"block.{number}.weight": torch.arange(12.0).reshape(3, 4) + number for number in range(5)}


def write(folder: Path, weights: dict[str, torch.Tensor], max_bytes: int, dtype: torch.dtype = torch.float32) -> Path:
    """The weights, each given row by row."""
    writer = TensorWriter(folder, max_bytes)
    for name, weight in weights.items():
        writer.add(name, weight.shape, dtype, weight.split(1))
    writer.finish()
    return folder


@pytest.mark.parametrize(("max_bytes", "num_files"), [(10**6, 1), (2 * 48, 3), (48, 5), (1, 5)])
def test_files_hold_what_fits_and_all_is_there(tmp_path: Path, max_bytes: int, num_files: int) -> None:
    write(tmp_path, WEIGHTS, max_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == num_files
    assert sorted(path.name for path in tmp_path.iterdir() if path not in files) == ([INDEX] if num_files > 1 else [])
    own = {name: weight for path in files for name, weight in load_file(path).items()}
    folder = TensorFolder(tmp_path)
    assert set(folder) == own.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert torch.equal(own[name], weight)
        assert torch.equal(folder.read(name), weight)
        assert folder.info(name).shape == (3, 4)
    if num_files > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == 5 * 48
        assert {tmp_path / name for name in index["weight_map"].values()} == set(files)


def test_weights_are_cast_and_other_types_are_refused(tmp_path: Path) -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    folder = TensorFolder(write(tmp_path, {"w": weight}, 10**6, torch.bfloat16))
    assert folder.info("w").dtype == torch.bfloat16
    assert torch.equal(folder.read("w"), weight.bfloat16())
    with pytest.raises(UserError, match=r"w: weights of type torch.int64 are not supported"):
        TensorWriter(tmp_path, 1).add("w", (1,), torch.int64, [])


@given(start=st.integers(0, 9), length=st.integers(0, 9), rows_per_chunk=st.integers(1, 12))
def test_chunks_are_consecutive_rows(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, rows_per_chunk: int
) -> None:
    folder, weight = tmp_path_factory.mktemp("chunks"), torch.arange(20.0).reshape(10, 2)
    save_file({"w": weight}, folder / SINGLE)
    stop = min(start + length, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "CHUNK_BYTES", rows_per_chunk * 8)
        chunks = list(TensorFolder(folder).chunks("w", start, stop))
    assert all(len(chunk) <= rows_per_chunk for chunk in chunks)
    assert torch.equal(torch.cat([weight[:0], *chunks]), weight[start:stop])


def test_a_header_that_is_full_begins_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "DATA_START", 512)
    write(tmp_path, WEIGHTS, 10**6)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert {name: w.tolist() for path in files for name, w in load_file(path).items()} == {
        name: weight.tolist() for name, weight in WEIGHTS.items()
    }


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors: missing; copy"):
        TensorFolder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model.bin is there; only safetensors are read"):
        TensorFolder(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(UserError, match=r"model.safetensors: not a whole safetensors file"):
        TensorFolder(tmp_path)
    save_file({"w": torch.ones(3, dtype=torch.int64)}, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"tensor w is of type I64; only"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gone": "model-00001-of-00003.safetensors"}, "lacks the tensor gone"),
        ({"w": "../w.safetensors"}, r"names a file outside its folder, \.\./w"),
        ({"w": "model-00009-of-00003.safetensors"}, "model-00009-of-00003.safetensors: missing"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    write(tmp_path, WEIGHTS, 96)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] |= change
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        TensorFolder(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(UserError, match="not a readable index"):
        TensorFolder(tmp_path)
