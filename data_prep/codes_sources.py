"""Codes that were computed elsewhere, by utterance (`encode --from-codes`): a file for each, or one that holds all.

| source | holds |
|---|---|
| a folder | ID.npy, .npz, .pt or .json, or the same under the recording's own path; VITA-Audio's STEM_glm4voice.json |
| .npz, .pt | an array by id |
| .jsonl | lines of `id` and `codes` |
| any other | lines of Kaldi's form, `ID CODE CODE ...` (ESPnet's pseudo_labels_km2000.txt), or its text.ts.*, a character for each code |

Codes may stand as text everywhere: `12 55 7`, or tokens such as <audio_12> (`_units`).

Nothing is unpickled: numpy loads without, torch with weights_only.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b, sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ttt_dist.audio.codec import CodecInfo, Codes
from ttt_dist.config.section import brief
from ttt_dist.manifest.entry import Entry
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError, one_line

KEYS = ("codes", "audio_codes", "audio_tokens", "tokens", "units", "code", "arr_0")
"""Under which of its names a file of one utterance, or a line, holds the codes."""
IDS = ("id", "key", "utt_id", "utt")
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, MemoryError, RecursionError, UnpicklingError, BadZipFile)
_TOKEN = re.compile(r"<\|?([^<>|\s]*?)([0-9]{1,18})\|?>")
_NUMBER = re.compile("-?[0-9]{1,18}")
FIRST_CHARACTER = 0x4E00  # of ESPnet's codes as characters: code n is chr(0x4e00 + n)


class CodesSource(ABC):
    """Codes by utterance."""

    fingerprint: str
    """What a part remembers of where its codes came from."""

    @abstractmethod
    def read(self, entry: Entry) -> np.ndarray:
        """The codes of an entry as they are stored. Raises UserError where there are none, or they are none."""


def open_codes(path: Path, codec_name: str, root: Path) -> CodesSource:
    """The source at `path`; `root` is the folder that the manifest's recordings lie in. Raises UserError."""
    if path.is_dir():
        return CodesFolder(path, codec_name, root)
    if not path.is_file():
        raise UserError(f"--from-codes {path}: no such file or folder")
    return CodesTable(path) if path.suffix in (".npz", ".pt") else CodesLines(path)


class CodesFolder(CodesSource):
    """A file per utterance, named by its id or as its recording is."""

    def __init__(self, folder: Path, codec_name: str, root: Path) -> None:
        self.folder, self.root, self.fingerprint = folder, root.absolute(), folder.name
        self._endings = (*READERS, f"_{codec_name}.json")

    def read(self, entry: Entry) -> np.ndarray:
        for name in self._names(entry):
            for ending in self._endings:
                path = self.folder / f"{name}{ending}"
                if path.is_file():
                    return _array(_load(path), path)
        raise UserError(
            f"no codes in {self.folder}: neither {entry['id']} nor its recording's name with {self._endings[0]} or so"
        )

    def _names(self, entry: Entry) -> Iterable[str]:
        """Paths below the folder, without ending; none leads out of it."""
        names = [str(entry["id"])]
        audio = entry.get("audio")
        if isinstance(audio, str) and "member" not in entry and "offset" not in entry:
            names.insert(0, os.path.splitext(os.path.relpath(audio, self.root))[0])
        return [name for name in map(os.path.normpath, names) if not (name.startswith("..") or os.path.isabs(name))]


class CodesTable(CodesSource):
    """One .npz or .pt with an array per id."""

    def __init__(self, path: Path) -> None:
        self.path, self.fingerprint = path, sha256_file(path)
        self._codes = _load(path)
        if not isinstance(self._codes, Mapping):
            raise UserError(f"{path}: holds one array, not one by id; name the folder of such files")

    def read(self, entry: Entry) -> np.ndarray:
        if entry["id"] not in self._codes:
            raise UserError(f"no codes of id {entry['id']!r} in {self.path}")
        return _array(self._codes[entry["id"]], self.path)


class CodesLines(CodesSource):
    """One file of lines, of which only ids (hashed) and places are kept: 16 bytes an utterance."""

    def __init__(self, path: Path) -> None:
        self.path, self._is_json = path, path.suffix == ".jsonl"
        hashes, places, digest, place = array("Q"), array("q"), sha256(), 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    hashes.append(_hash(self._key(line, number)))
                    places.append(place)
                place += len(line)
        self.fingerprint = digest.hexdigest()
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")
        self._hashes, self._places = np.array(hashes, np.uint64)[order], np.array(places, np.int64)[order]
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(twice):
            raise UserError(f"{path}: has the id {self._line(int(twice[0]))[0]!r} twice; keep one line of each")

    def read(self, entry: Entry) -> np.ndarray:
        found = int(np.searchsorted(self._hashes, np.uint64(_hash(entry["id"]))))
        key, rest = self._line(found) if found < len(self._hashes) else ("", "")
        if key != entry["id"]:
            raise UserError(f"no codes of id {entry['id']!r} in {self.path}")
        if self._is_json:
            return _array(json.loads(rest), self.path)
        if any(character.isspace() or character < "\u0100" for character in rest):
            return _integers(rest)
        return np.frombuffer(rest.encode("utf-32-le"), "<i4") - FIRST_CHARACTER

    def _line(self, number: int) -> tuple[str, str]:
        """Id of a line in the order of the hashes, and what its codes are read from."""
        with open(self.path, "rb") as file:
            file.seek(int(self._places[number]))
            line = file.readline()
        if self._is_json:
            return self._key(line, number), line.decode()
        key, *rest = line.decode().strip().split(maxsplit=1)  # by a space or a tab
        return key, "".join(rest)

    def _key(self, line: bytes, number: int) -> str:
        try:
            if not self._is_json:
                return line.split(maxsplit=1)[0].decode()
            record = json.loads(line)
            return str(next(record[name] for name in IDS if name in record))
        except (ValueError, TypeError, StopIteration, RecursionError) as error:
            raise UserError(f"{self.path}:{number}: has no id ({one_line(error)}); correct the line") from error


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _load_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _load_numpy(path: Path) -> Any:
    with open(path, "rb") as file:
        return np.load(file, allow_pickle=False)


def _load_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def _load_torch(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


READERS: Mapping[str, Callable[[Path], Any]] = {
    ".npy": _load_numpy, ".npz": _load_npz, ".pt": _load_torch, ".json": _load_json,
}  # fmt: skip


def _load(path: Path) -> Any:
    try:
        return READERS[path.suffix](path)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {one_line(error)}); write it again"
        ) from error


def _array(values: Any, path: Path) -> np.ndarray:
    """What a file of one utterance, or a line, holds. Raises UserError where that is no array of whole numbers."""
    if isinstance(values, Mapping):
        names = [name for name in KEYS if name in values] or (list(values) if len(values) == 1 else [])
        if not names:
            raise UserError(
                f"{path}: holds {', '.join(map(str, list(values)[:5]))}, none of {', '.join(KEYS)}; rename the codes"
            )
        values = values[names[0]]
    return _integers(values)


def _integers(values: Any) -> np.ndarray:
    """Whole numbers, int64 [...], of numbers or texts."""
    found = np.asarray(values)
    if found.dtype.kind == "U":
        found = _of_texts(found)
    if found.dtype.kind not in "iu" and found.size:
        raise UserError(f"codes of type {found.dtype}, not whole numbers")
    return found.astype(np.int64)


def _of_texts(texts: np.ndarray) -> np.ndarray:
    """The codes of texts [...], int64: one each [...], or as many each [..., T]. Raises UserError where they are none."""
    each = [_units(text) for text in texts.reshape(-1).tolist()]
    lengths = {len(units) for units in each}
    if lengths == {1}:
        return np.array(_units(" ".join(texts.reshape(-1).tolist()))).reshape(texts.shape)
    if len(lengths) > 1:
        raise UserError(f"codes as texts of {min(lengths)} to {max(lengths)} codes each; give all codebooks as many")
    return np.array(each, np.int64).reshape(*texts.shape, -1) if each else texts.astype(np.int64)


def _units(text: str) -> list[int]:
    """The codes of `12 55 7`, `[12, 55, 7]` or tokens of one name, <audio_12><audio_55>. Raises UserError for anything else."""
    tokens = _TOKEN.findall(text)
    if tokens and not _TOKEN.sub("", text).strip():
        names = {name: code for name, code in tokens}
        if len(names) > 1:
            told = " and ".join(f"<{name}{code}>" for name, code in list(names.items())[:2])
            raise UserError(f"codes as tokens of several names, {brief(told)}; give those of one")
        return [int(code) for _, code in tokens]
    words = re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip(" ,"))
    wrong = next((word for word in words if not _NUMBER.fullmatch(word)), None)
    if wrong:
        raise UserError(
            f"codes with {brief(wrong)}, no whole number; write a list of numbers, the text `12 55 7`, or tokens such as <audio_12>"
        )
    return [int(word) for word in words if word]


def flat_codes(codes: np.ndarray, codec: CodecInfo) -> Codes:
    """Codes as `Codec.encode` gives them, int32 [frames * codes_per_frame], of what a file holds.

    Of one codebook: [T], with or without axes of 1. Of several: [K, T] or [T, K], the codes of each codebook from 0 on, as the
    packages give them (more codebooks than the codec's: the first ones), or [T * K] frame by frame, with or without the codebook's
    offset. Raises UserError where the shape or a code does not fit.
    """
    num, entries = codec.codes_per_frame, codec.codebook_size // codec.codes_per_frame
    if num == 1:
        codes = codes.squeeze()
    while codes.ndim > 2 and len(codes) == 1:
        codes = codes[0]
    if codes.ndim == 2 and num > 1:
        codes = _by_frame(codes, num)
    elif codes.ndim <= 1 and codes.size % num == 0:
        codes = codes.reshape(-1, num)
    else:
        raise UserError(f"codes of shape {list(codes.shape)}, where {codec.name} has {num} to a frame; see --codebooks")
    if not codes.size:
        raise UserError("has no codes")
    offsets = np.arange(num) * entries
    if num > 1 and ((codes >= offsets) & (codes < offsets + entries)).all():
        codes = codes - offsets
    if codes.min() < 0 or codes.max() >= entries:
        wrong = codes[(codes < 0) | (codes >= entries)][0]
        raise UserError(f"code {wrong} is outside 0..{entries - 1} of {codec.name}: of another codec, or offset")
    return (codes + offsets).reshape(-1).astype(np.int32)


def _by_frame(codes: np.ndarray, num: int) -> np.ndarray:
    """[T, num] of [K, T] or [T, K]. An axis of num is that of the codebooks, the first where both are; else the shorter one."""
    rows, columns = codes.shape
    if rows == num or (columns != num and num < rows < columns):
        return codes[:num].T
    if columns == num or num < columns < rows:
        return codes[:, :num]
    raise UserError(f"codes of shape [{rows}, {columns}], which has no axis of {num} codebooks; see --codebooks")
