"""The interface of speech tokenizers: waveforms to discrete codes and back (`ttt_dist.audio.registry` loads them)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Codes = npt.NDArray[np.int32]

DESCRIPTION = "codec.json"  # the file that makes a folder a saved codec
CLASS = "class"  # key of a codec.json: package.module:Class of a codec that is not ours
OURS = "ttt_dist.audio.codecs."


@dataclass(frozen=True, kw_only=True)
class CodecInfo:
    """What a codec is, without its weights."""

    name: str
    hash: str
    sample_rate: int
    frame_rate: float
    codes_per_frame: int
    codebook_size: int


def stored_info(stored: Mapping[str, Any], path: Path) -> CodecInfo:
    """What the contents of a codec.json at `path` say that the codec is. Raises UserError where they do not."""
    try:
        return CodecInfo(
            name=str(stored["name"]),
            hash=str(stored["hash"]),
            sample_rate=int(stored["sample_rate"]),
            frame_rate=float(stored["frame_rate"]),
            codes_per_frame=int(stored.get("codes_per_frame", 1)),
            codebook_size=int(stored["codebook_size"]),
        )
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: does not say what the codec is ({error!r}); save the codec again") from error


def checked_codes(codec: Codec, waves: Sequence[Tensor], codes: Sequence[Codes]) -> Sequence[Codes]:
    """What `codec.encode(waves)` gave, if it is what it has to be. Raises UserError: from here on codes are only bytes."""
    if len(codes) != len(waves):
        raise UserError(
            f"codec {codec.name}: encode gave {len(codes)} arrays for {len(waves)} waveforms; mend its encode"
        )
    for wave, one in zip(waves, codes, strict=True):
        length = -(-len(wave) // codec.hop) * codec.codes_per_frame
        is_right = isinstance(one, np.ndarray) and one.dtype == np.int32 and one.shape == (length,)
        if not is_right or (length and not 0 <= one.min() <= one.max() < codec.codebook_size):
            gave = f"{getattr(one, 'dtype', type(one).__name__)} {list(getattr(one, 'shape', []))}"
            raise UserError(
                f"codec {codec.name}: encode gave {gave} for {len(wave):,} samples; wanted is an array of int32 [{length}] "
                f"in 0..{codec.codebook_size - 1}"
            )
    return codes


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
    folder: Path | None = None  # of its weights, which stay where they are
    loaded_with: Mapping[str, Any] = {}  # what was chosen of codebooks and dtype

    @classmethod
    def load(cls, *folder: Any, **choices: Any) -> Codec:
        """Open the codec of a folder; a codec without files needs none.

        Those of `codebooks`, `dtype` and `device` that an implementation names as parameters are handed to it where the user
        chooses them; what it does not name is refused. Raises UserError naming the file that is missing or wrong.
        """
        return cls()

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

    def choices(self) -> dict[str, Any]:
        """The arguments of `load`, beside the folder, that give this codec again."""
        return dict(self.loaded_with)

    def save(self, folder: str | Path) -> None:
        """Write the codec as a folder that `load_codec` reads: codec.json says what it is, and where its weights lie.

        A codec that keeps files of its own beside codec.json writes them here, and has no `folder`: `load` is then given
        the one that it was saved in.
        """
        where = {} if self.folder is None else {"weights": str(self.folder.resolve())}
        with atomic_write(Path(folder) / DESCRIPTION) as file:
            json.dump({**asdict(self.info), **self._class(), **where, **self.choices()}, file, indent=2)
            file.write("\n")

    @property
    def info(self) -> CodecInfo:
        """Name, hash, rates and sizes."""
        return CodecInfo(**{key: getattr(self, key) for key in CodecInfo.__dataclass_fields__})

    def describe(self) -> dict[str, Any]:
        """Plain values that say what made the codes, for the record."""
        return {**asdict(self.info), **self._class()}

    def _class(self) -> dict[str, str]:
        """Of a codec that is not ours, where its class is."""
        kind = type(self)
        return {} if kind.__module__.startswith(OURS) else {CLASS: f"{kind.__module__}:{kind.__qualname__}"}
