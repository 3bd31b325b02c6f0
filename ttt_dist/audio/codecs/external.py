"""Codes to a waveform by a program of the user's: for codecs that have no decoder here, or to try another one.

`{codes}` in the command stands for a JSON file with the list of codes, `{wav}` for the file in which it must leave the
speech (docs/codecs.md).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt_dist.audio.batches import fit
from ttt_dist.audio.codec import Codec, Codes
from ttt_dist.audio.command import Command
from ttt_dist.audio.io import read_audio
from ttt_dist.util.errors import UserError

FLAG = "--decoder-command"
TOLERANCE_S, TOLERANCE = 0.5, 0.1  # how far the speech's length may be from the codes': seconds, and share of it


class ExternalDecoder(Codec):
    """A codec that encodes by itself, and decodes by a command."""

    def __init__(self, codec: Codec, command: str) -> None:
        self.codec = codec
        self.name, self.hash = codec.name, codec.hash
        self.sample_rate, self.frame_rate = codec.sample_rate, codec.frame_rate
        self.codes_per_frame, self.codebook_size = codec.codes_per_frame, codec.codebook_size
        self.command = Command(FLAG, command, ("{codes}", "{wav}"), "python decode.py {codes} {wav}")

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """As the codec itself."""
        return self.codec.encode(waves)

    def decode(self, codes: Codes) -> Tensor:
        """Codes [n * codes_per_frame] -> [n * hop], as the command speaks them; whatever rate it writes is converted.

        Raises UserError where the command fails, writes no WAV, or one of another length than the codes have.
        """
        num_samples = len(codes) // self.codes_per_frame * self.hop
        if not num_samples:
            return torch.zeros(0)
        with tempfile.TemporaryDirectory(prefix="ttt-decode-") as folder:
            places = {"{codes}": f"{folder}/codes.json", "{wav}": f"{folder}/speech.wav"}
            Path(places["{codes}"]).write_text(json.dumps(np.asarray(codes).tolist()), encoding="utf-8")
            self.command.run(places)
            if not Path(places["{wav}"]).is_file():
                raise UserError(f"{FLAG}: {self.command.program} ended well, but wrote no {{wav}}; correct it")
            return read_speech(places["{wav}"], self.sample_rate, num_samples, FLAG)

    def save(self, folder: str | Path) -> None:
        """Write the codec itself; the command is not kept."""
        self.codec.save(folder)

    def describe(self) -> dict[str, Any]:
        """As the codec itself, whose codes these are."""
        return self.codec.describe()


def read_speech(path: str, sample_rate: int, num_samples: int, flag: str) -> Tensor:
    """The speech [num_samples] that a program left at `path`, in any rate. Raises UserError where it is of another length."""
    wave = read_audio(path, sample_rate).clamp(-1, 1)
    if abs(len(wave) - num_samples) > max(TOLERANCE_S * sample_rate, TOLERANCE * num_samples):
        raise UserError(
            f"{flag}: wrote {len(wave) / sample_rate:.2f} s of speech for codes of "
            f"{num_samples / sample_rate:.2f} s; check the rate that it writes"
        )
    return fit(wave, num_samples)
