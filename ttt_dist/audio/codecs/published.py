"""Codecs whose weights others published: their folders, identity, and what is kept of them beside the codes.

Weights stay where they are: a saved codec is a codec.json with their place, the choice of codebooks, and the hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttt_dist.audio.codec import Codec
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
REMEDY = "download or copy the folder again"


class PublishedCodec(Codec):
    """A codec of a published folder: `folder` holds config.json and safetensors, `num_codebooks` of them are used."""

    folder: Path
    num_codebooks: int
    chosen_dtype: str | None = None  # precision that was asked for, by those that have a choice

    def choices(self) -> dict[str, Any]:
        """Number of codebooks, and the precision that was asked for."""
        return {"codebooks": self.num_codebooks, **({"dtype": self.chosen_dtype} if self.chosen_dtype else {})}


def choose_codebooks(name: str, folder: Path, most: int, asked: int | None) -> int:
    """How many of a residual quantiser's `most` codebooks are used: all, if none asked. Raises UserError where it has fewer."""
    if asked is not None and not 1 <= asked <= most:
        raise UserError(f"codebooks {asked}: {name} in {folder} has {most}; choose 1 to {most}")
    return most if asked is None else asked


def read_config(folder: Path) -> dict[str, Any]:
    """A published folder's config.json. Raises UserError naming what is missing."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: missing; name the folder that was downloaded, with config.json and model.safetensors")
    try:
        return read_object(path, REMEDY)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that the index names. Raises UserError naming the first that is missing."""
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.is_file():
        try:
            listed = sorted(set(read_object(index, REMEDY)["weight_map"].values()))
        except (OSError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: not a readable index of weights ({error}); {REMEDY}") from error
        if not all(isinstance(name, str) for name in listed):
            raise UserError(f"{index}: not a readable index of weights (a name is no text); {REMEDY}")
        is_stale = (folder / names[0]).is_file() and not all(os.path.isfile(folder / name) for name in listed)
        names = names if is_stale else listed
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names a file outside its folder, {name}; {REMEDY}")
        if not os.path.isfile(folder / name):
            raise UserError(f"{folder / name}: missing; {REMEDY} (only safetensors are read)")
    return [folder / name for name in names]


def folder_hash(name: str, folder: Path, num_codebooks: int, *choices: str) -> str:
    """One SHA-256 over what decides the codes: name, config.json, weights, number of codebooks, other choices; in hex."""
    return files_hash(name, [folder / CONFIG, *weight_files(folder)], num_codebooks, *choices)


def files_hash(name: str, files: Sequence[Path], num_codebooks: int, *choices: str) -> str:
    """The same of files that are named."""
    parts = [name, num_codebooks, [[path.name, sha256_file(path)] for path in files], *choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
