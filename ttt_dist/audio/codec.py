"""The interface of speech tokenizers: waveforms to discrete codes and back (`ttt_dist.audio.registry` loads them)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Codes = npt.NDArray[np.int32]

DESCRIPTION = "codec.json"  # the file that makes a folder a saved codec


@dataclass(frozen=True)
class CodecInfo:
    """What a codec is, without its weights."""

    name: str
    hash: str
    sample_rate: int
    frame_rate: float
    codes_per_frame: int
    codebook_size: int


class Codec(ABC):
    """A speech tokenizer.

    A frame covers `hop` samples: frame i stands for samples [i * hop, (i + 1) * hop). It has one code, or k of them in
    a row where k codebooks of K entries were chosen: c_0, c_1 + K, c_2 + 2K, ... (`ttt_dist.audio.codecs.codebooks`).
    """

    name: str
    sample_rate: int  # Hz, of the waveforms it takes and gives
    frame_rate: float  # frames per second
    codes_per_frame: int = 1
    codebook_size: int  # of all codebooks together: codes are in 0..codebook_size-1
    hash: str  # hex SHA-256 over everything that decides its codes
    no_decoder: str | None = None  # why `decode` is refused, and the remedy; None where it works

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def code_rate(self) -> float:
        """Codes per second."""
        return self.frame_rate * self.codes_per_frame

    @abstractmethod
    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] at `sample_rate` -> codes [ceil(T_i / hop) * codes_per_frame], int32.

        A waveform's codes do not depend on which others are in the batch.
        """

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes [n * codes_per_frame] -> waveform [n * hop], float32 in -1..1. Deterministic."""

    def require_decoder(self) -> None:
        """Refuse a codec that cannot decode, before the work whose result it would have to speak. Raises UserError."""
        if self.no_decoder:
            raise UserError(self.no_decoder)

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the codec as a folder that `load_codec` reads."""

    @property
    def info(self) -> CodecInfo:
        """Name, hash, rates and sizes."""
        return CodecInfo(**{key: getattr(self, key) for key in CodecInfo.__dataclass_fields__})

    def describe(self) -> dict[str, Any]:
        """Plain values that say what made the codes, for the record."""
        return asdict(self.info)
