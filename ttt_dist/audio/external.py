"""Codes to a waveform by a program of the user's: for codecs that have no decoder here, or to try another one.

The command comes from the command line, never from a file. `{codes}` in it stands for a JSON file with the list of
codes, `{wav}` for the file in which it must leave the speech (docs/codecs.md). No shell takes part.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt_dist.audio.batches import fit
from ttt_dist.audio.codec import Codec, Codes
from ttt_dist.audio.files import read_audio
from ttt_dist.errors import UserError

TOLERANCE_S, TOLERANCE = 0.5, 0.1  # how far the speech's length may be from the codes': seconds, and share of it


class ExternalDecoder(Codec):
    """A codec that encodes by itself, and decodes by a command."""

    def __init__(self, codec: Codec, command: str) -> None:
        self.codec = codec
        self.name, self.hash = codec.name, codec.hash
        self.sample_rate, self.frame_rate = codec.sample_rate, codec.frame_rate
        self.codes_per_frame, self.codebook_size = codec.codes_per_frame, codec.codebook_size
        self.arguments = _arguments(command)

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
            _run([_fill(argument, places) for argument in self.arguments])
            if not Path(places["{wav}"]).is_file():
                raise UserError(f"--decoder-command: {self.arguments[0]} ended well, but wrote no {{wav}}; correct it")
            wave = read_audio(places["{wav}"], self.sample_rate).clamp(-1, 1)
        if abs(len(wave) - num_samples) > max(TOLERANCE_S * self.sample_rate, TOLERANCE * num_samples):
            raise UserError(
                f"--decoder-command: wrote {len(wave) / self.sample_rate:.2f} s of speech for codes of "
                f"{num_samples / self.sample_rate:.2f} s; check the rate that it writes"
            )
        return fit(wave, num_samples)

    def save(self, folder: str | Path) -> None:
        """Write the codec itself; the command is not kept."""
        self.codec.save(folder)

    def describe(self) -> dict[str, Any]:
        """As the codec itself, whose codes these are."""
        return self.codec.describe()


def _arguments(command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--decoder-command: {error}; close the quotes") from error
    for name in ("{codes}", "{wav}"):
        if not any(name in argument for argument in arguments[1:]):
            raise UserError(f"--decoder-command: lacks {name}; write it as 'python decode.py {{codes}} {{wav}}'")
    return arguments


def _fill(argument: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        argument = argument.replace(name, path)
    return argument


def _run(arguments: list[str]) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise UserError(
            f"--decoder-command: {arguments[0]} cannot be run ({error.strerror}); correct the command"
        ) from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"--decoder-command: {arguments[0]} ended with status {done.returncode}"
            f" ({lines[-1].strip() if lines else 'without a message'}); run it by hand to see more"
        )
