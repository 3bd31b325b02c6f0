"""Speech tokenizers behind one interface: waveforms to discrete codes and back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ttt_dist.errors import UserError

Codes = npt.NDArray[np.int32]


class Codec(ABC):
    """A speech tokenizer of one codebook.

    A code covers exactly `sample_rate / frame_rate` samples: code k stands for samples [k * hop, (k + 1) * hop).
    """

    name: str
    sample_rate: int  # Hz, of the waveforms it takes and gives
    frame_rate: float  # codes per second
    codebook_size: int
    hash: str  # hex SHA-256 over everything that decides its codes

    @property
    def hop(self) -> int:
        """Samples per code."""
        return round(self.sample_rate / self.frame_rate)

    @abstractmethod
    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] at `sample_rate` -> codes [ceil(T_i / hop)], int32 in 0..codebook_size-1.

        A waveform's codes do not depend on which others are in the batch.
        """

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes [n] -> waveform [n * hop], float32 in -1..1. Deterministic."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the codec as a folder that `load_codec` reads."""


def load_codec(spec: str | Path) -> Codec:
    """Load `NAME:FOLDER`, or `FOLDER` whose codec.json says the name. Raises UserError where it is none."""
    from ttt_dist.audio.melvq import MelVQ  # here, because melvq builds on this file

    kinds: dict[str, type[MelVQ]] = {"melvq": MelVQ}
    name, _, place = str(spec).rpartition(":")
    folder = Path(place)
    description = folder / "codec.json"
    if not description.is_file():
        raise UserError(
            f"{folder}: is no codec folder (codec.json is missing); name one that was saved, or learn melvq with --train-codec"
        )
    try:
        stored = json.loads(description.read_text(encoding="utf-8"))["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{description}: is no codec description ({error}); save the codec again") from error
    if name and name != stored:
        raise UserError(f"{description}: holds codec {stored!r}, but {name!r} was asked for; write {stored}:{folder}")
    if stored not in kinds:
        raise UserError(f"{description}: codec {stored!r} is not known; known are {', '.join(sorted(kinds))}")
    return kinds[stored].load(folder)
