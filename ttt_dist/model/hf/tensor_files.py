"""Tensors in a folder of safetensors files, one piece at a time: neither side ever holds a whole model, or a whole file.

A folder has `model.safetensors`, or `model-00001-of-0000N.safetensors` and an index that says which tensor is where; of both
the single file counts.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttt_dist.util.atomic_files import open_new
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 8 << 20
DATA_START = 1 << 16  # a header is written last, into the space kept for it; it holds some 500 tensors
REMEDY = "copy or export the model again"


class TensorInfo(NamedTuple):
    """Where a tensor is, and what it is."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFolder:
    """The tensors of a folder, by name. Files are mapped only while a piece is read, so that their pages leave memory.

    Raises UserError naming the file, and the tensor, that is missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        single, index = self.folder / SINGLE, self.folder / INDEX
        # As transformers reads such a folder: an index may be left from the shards that a single file has replaced.
        self.tensors = _indexed(index) if index.exists() and not single.exists() else _described(single)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """Place, shape and type of tensor `name`."""
        if name not in self.tensors:
            raise UserError(f"{self.folder}: has no tensor {name}, which config.json asks for; {REMEDY}")
        return self.tensors[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, mapped from its file; all of it by default."""
        path = self.info(name).path
        try:
            with safe_open(path, framework="pt") as file:
                if start == 0 and stop is None:
                    return file.get_tensor(name)
                return file.get_slice(name)[start:stop]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: tensor {name} cannot be read ({error}); {REMEDY}") from error

    def chunks(self, name: str, start: int = 0, stop: int | None = None, item_bytes: int = 0) -> Iterator[Tensor]:
        """Rows [start, stop) in pieces of at most CHUNK_BYTES at `item_bytes` (default: their own) per number."""
        _, shape, dtype = self.info(name)
        stop = shape[0] if stop is None else stop
        row_bytes = (item_bytes or dtype.itemsize) * torch.Size(shape[1:]).numel()
        step = max(1, CHUNK_BYTES // row_bytes)
        for first in range(start, stop, step):
            yield self.read(name, first, min(first + step, stop))


class TensorWriter:
    """Writes tensors as they come into files of at most `max_bytes` of data each; larger tensors have a file of their own.

    Files have temporary names until `finish`, which also writes the index: the folder itself should be a temporary one.
    """

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.num_bytes = 0
        self.names: list[str] = []
        self._shards: list[dict[str, Any]] = []  # headers
        self._file: IO[bytes] | None = None

    def add(self, name: str, shape: Iterable[int], dtype: torch.dtype, chunks: Iterable[Tensor]) -> None:
        """Append a tensor, given as its consecutive rows in `chunks`, which are cast to `dtype`."""
        if dtype not in DTYPE_NAMES:
            raise UserError(f"{name}: weights of type {dtype} are not supported; use bf16 or fp32")
        shape = list(shape)
        size = torch.Size(shape).numel() * dtype.itemsize
        start = self._make_room(name, size)
        assert self._file is not None
        for chunk in chunks:
            self._file.write(chunk.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)
        assert self._file.tell() == DATA_START + start + size, f"{name} is not {shape}"
        entry = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, start + size]}
        self._shards[-1][name] = entry
        self.names.append(name)
        self.num_bytes += size

    def finish(self) -> None:
        """Close the last file, give all of them their names, and write the index where there is more than one."""
        self._close()
        total = len(self._shards)
        if total == 1:
            self._aside(0).rename(self.folder / SINGLE)
            return
        places: dict[str, str] = {}
        for number, header in enumerate(self._shards):
            name = f"model-{number + 1:05d}-of-{total:05d}.safetensors"
            self._aside(number).rename(self.folder / name)
            places |= {key: name for key in header if key != "__metadata__"}
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": places}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf8")

    def close(self) -> None:
        """Let go of an unfinished file."""
        if self._file is not None:
            self._file.close()

    def _make_room(self, name: str, size: int) -> int:
        """Begin a new file where the tensor does not fit into the open one; offset of its data there."""
        if self._file is not None:
            used = self._file.tell() - DATA_START
            # An entry is its name and less than 150 characters more.
            room = DATA_START - len(json.dumps(self._shards[-1])) - len(name) - 150
            if used + size <= self.max_bytes and room > 0:
                return used
            self._close()
        self._shards.append({"__metadata__": {"format": "pt"}})
        self._file = open_new(self._aside(len(self._shards) - 1))  # lives until the file is full
        self._file.seek(DATA_START)
        return 0

    def _close(self) -> None:
        """Write the header, padded with the spaces that the format allows."""
        if self._file is not None:
            header = json.dumps(self._shards[-1]).encode()
            self._file.seek(0)
            self._file.write((DATA_START - 8).to_bytes(8, "little") + header.ljust(DATA_START - 8))
            self._file.close()
            self._file = None

    def _aside(self, number: int) -> Path:
        return self.folder / f".{number:05d}.tmp"


def _indexed(index: Path) -> dict[str, TensorInfo]:
    """The tensors that an index names, each found in the file that it names."""
    try:
        values = read_object(index, REMEDY)["weight_map"]
        places = {str(name): str(file) for name, file in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a readable index of tensors ({error}); {REMEDY}") from error
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or "\0" in name]
    if outside:
        raise UserError(f"{index}: names a file outside its folder, {outside[0]}; {REMEDY}")
    found = {name: _described(index.parent / name) for name in files}
    for name, file in places.items():
        if name not in found[file]:
            raise UserError(f"{index.parent / file}: lacks the tensor {name}, which {INDEX} puts there; {REMEDY}")
    return {name: found[file][name] for name, file in places.items()}


def _described(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, from its header alone."""
    if not os.path.exists(path):  # where Path.exists raises: a name of an index may be too long for a file
        found = sorted(other.name for other in path.parent.glob("*.bin"))
        extra = f" ({found[0]} is there; only safetensors are read)" if found else ""
        raise UserError(f"{path}: missing{extra}; {REMEDY}")
    try:
        with safe_open(path, framework="pt") as file:
            pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            kinds = {name: (tuple(piece.get_shape()), str(piece.get_dtype())) for name, piece in pieces.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); {REMEDY}") from error
    for name, (_, dtype) in kinds.items():
        if dtype not in DTYPES:
            raise UserError(f"{path}: tensor {name} is of type {dtype}; only bf16, fp16 and fp32 weights are read")
    return {name: TensorInfo(path, shape, DTYPES[dtype]) for name, (shape, dtype) in kinds.items()}
