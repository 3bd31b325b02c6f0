"""Codecs whose weights others published: their folders, identity, and what is kept of them beside the codes.

Weights stay where they are: a saved codec is a codec.json with their place, the choice of codebooks, and the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ttt_dist.audio.codec import DESCRIPTION, Codec
from ttt_dist.util.atomic_files import atomic_write, sha256_file
from ttt_dist.util.errors import UserError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
REMEDY = "download or copy the folder again"


class PublishedCodec(Codec):
    """A codec of a published folder: `folder` holds config.json and safetensors, `num_codebooks` of them are used."""

    folder: Path
    num_codebooks: int
    chosen_dtype: str | None = None  # precision that was asked for, by those that have a choice

    def save(self, folder: str | Path) -> None:
        """Write codec.json; the weights stay in their folder, whose absolute path it names."""
        stored = {
            **asdict(self.info),
            "weights": str(self.folder.resolve()),
            "codebooks": self.num_codebooks,
            **({"dtype": self.chosen_dtype} if self.chosen_dtype else {}),
        }
        with atomic_write(Path(folder) / DESCRIPTION) as file:
            json.dump(stored, file, indent=2)
            file.write("\n")


def saved_choice(folder: Path, stored: Mapping[str, Any], codebooks: int | None) -> tuple[Path, int]:
    """Folder of the weights and number of codebooks that a codec.json names; UserError where they cannot be had."""
    path = folder / DESCRIPTION
    try:
        weights, chosen = Path(stored["weights"]), int(stored["codebooks"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: does not name its weights ({error!r}); save the codec again") from error
    if codebooks not in (None, chosen):
        raise UserError(f"{path}: was saved with {chosen} codebooks, not {codebooks}; leave the choice out")
    if not weights.is_dir():
        raise UserError(
            f'{path}: the weights of {stored["name"]} are no longer in {weights}; put them back there, or correct "weights" '
            "(the hash is checked)"
        )
    return weights, chosen


def read_config(folder: Path) -> dict[str, Any]:
    """A published folder's config.json. Raises UserError naming what is missing."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: missing; name the folder that was downloaded, with config.json and model.safetensors")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that the index names. Raises UserError naming the first that is missing."""
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index}: not a readable index of weights ({error}); {REMEDY}") from error
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index}: names a file outside its folder, {name}; {REMEDY}")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; {REMEDY} (only safetensors are read)")
    return [folder / name for name in names]


def folder_hash(name: str, folder: Path, num_codebooks: int, *choices: str) -> str:
    """One SHA-256 over what decides the codes: name, config.json, weights, number of codebooks, other choices; in hex."""
    files = [folder / CONFIG, *weight_files(folder)]
    parts = [name, num_codebooks, [[path.name, sha256_file(path)] for path in files], *choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
