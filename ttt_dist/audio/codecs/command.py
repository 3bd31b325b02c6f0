"""A codec that a program of the user's is, both ways: for packages that cannot be installed beside ours (docs/codecs.md).

The program is started once and talks in lines of JSON over its standard input and output. It begins with what it is:

    {"name": ..., "hash": ..., "sample_rate": ..., "frame_rate": ..., "codes_per_frame": ..., "codebook_size": ...}

and then answers each line that it reads, until its input ends:

    {"encode": [PATH.wav, ...]}              -> {"codes": [[...], ...]}
    {"decode": [...], "wav": PATH.wav}       -> {}, when the speech lies there
    either                                   -> {"error": "what is wrong"}

It is named on the command line (`--codec command:PROGRAM`) or, where a saved codec is opened, by the environment variable
TTT_CODEC_COMMAND; never by a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from ttt_dist.audio.codec import DESCRIPTION, Codec, CodecInfo, Codes, checked_codes, stored_info
from ttt_dist.audio.codecs.external import read_speech
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

VARIABLE = "TTT_CODEC_COMMAND"
PER_REQUEST = 32  # waveforms that lie in the temporary folder at once
PATIENCE_S = 5  # that a program has to end by itself once its input did


class CommandCodec(Codec):
    """The codec. One that is opened from a folder, and whose program nobody named, knows its rates and refuses the rest."""

    name = "command"

    def __init__(self, program: Program | None, info: CodecInfo, called: str) -> None:
        self.program, self.called = program, called
        for key, value in asdict(info).items():
            setattr(self, key, value)
        if program is None:
            self.no_decoder = (
                f"the program of {called} is not known here; set {VARIABLE} to what --codec command: was given"
            )

    @classmethod
    def load(cls, source: str | Path) -> CommandCodec:
        """`source` is the program and its arguments, or the folder (a Path) of a codec that was saved."""
        if isinstance(source, Path):
            stored = read_object(source / DESCRIPTION, "save the codec again")
            command, told_as = os.environ.get(VARIABLE), VARIABLE
            if command is None:
                return cls(None, stored_info(stored, source / DESCRIPTION), str(stored.get("called")))
        else:
            command, told_as = source, "--codec command"
        program = Program(command, told_as)
        said = program.answer()
        return cls(program, read_info(said, program), said["name"])

    def choices(self) -> dict[str, Any]:
        """What the program calls itself, for whoever reads codec.json; nothing is chosen."""
        return {"called": self.called}

    def describe(self) -> dict[str, Any]:
        """Adds what the program calls itself."""
        return {**super().describe(), "called": self.called}

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] -> codes, as the program gives them. Raises UserError where they are not what they have to be."""
        codes: list[Codes] = []
        for start in range(0, len(waves), PER_REQUEST):
            some = waves[start : start + PER_REQUEST]
            codes += checked_codes(self, some, self._codes(some))
        return codes

    def decode(self, codes: Codes) -> Tensor:
        """Codes [n * codes_per_frame] -> [n * hop], as the program speaks them; whatever rate it writes is converted."""
        num_samples = len(codes) // self.codes_per_frame * self.hop
        program = self._program()
        if not num_samples:
            return torch.zeros(0)
        with tempfile.TemporaryDirectory(prefix="ttt-codec-") as folder:
            path = f"{folder}/speech.wav"
            program.ask({"decode": np.asarray(codes).tolist(), "wav": path})
            if not Path(path).is_file():
                raise program.error("wrote no speech to the path that it was given")
            return read_speech(path, self.sample_rate, num_samples, program.told_as)

    def _codes(self, waves: Sequence[Tensor]) -> list[Codes]:
        program = self._program()
        with tempfile.TemporaryDirectory(prefix="ttt-codec-") as folder:
            paths = [f"{folder}/{number}.wav" for number in range(len(waves))]
            for path, wave in zip(paths, waves, strict=True):
                soundfile.write(path, wave.numpy(), self.sample_rate, subtype="FLOAT")
            found = program.ask({"encode": paths}).get("codes", 0)
        try:
            return [np.array(one, np.int32) for one in found]
        except (ValueError, TypeError, OverflowError) as error:
            raise program.error(f"gave codes that are no lists of whole numbers ({error})") from error

    def _program(self) -> Program:
        if self.program is None:
            raise UserError(f"codec {self.name}: {self.no_decoder}")
        return self.program


class Program:
    """A running program, asked line by line. `told_as` begins the messages. It ends with this object or this process."""

    def __init__(self, command: str, told_as: str) -> None:
        self.told_as, self.lock, self.log = told_as, threading.Lock(), tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise UserError(f"{told_as}: {error}; close the quotes") from error
        if not self.arguments:
            raise UserError(f"{told_as}: names no program; write it as 'command:python codec_program.py'")
        try:
            self.process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise UserError(
                f"{told_as}: {self.arguments[0]} cannot be run ({error.strerror}); correct the command"
            ) from error
        weakref.finalize(self, _end, self.process)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Raises UserError where the program says what is wrong, or ends."""
        with self.lock:
            stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
            with contextlib.suppress(BrokenPipeError):  # what it left behind is read below
                stdin.write(json.dumps(question) + "\n")
                stdin.flush()
            return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that it writes."""
        stdout: IO[str] = self.process.stdout  # type: ignore[assignment]
        line = stdout.readline()
        if not line:
            raise self.error(f"ended with status {self.process.wait()} ({self._last_line()})")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self.error(f"wrote {line.strip()[:60]!r}, no JSON; let it print to stderr") from error
        if not isinstance(answer, dict):
            raise self.error(f"wrote {line.strip()[:60]!r}, no JSON object")
        if "error" in answer:
            raise self.error(str(answer["error"]))
        return answer

    def error(self, what: str) -> UserError:
        """That the program did `what`."""
        return UserError(f"{self.told_as}: {self.arguments[0]}: {what}; run it by hand to see more")

    def _last_line(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "without a message"


def read_info(told: Mapping[str, Any], program: Program) -> CodecInfo:
    """What a program says that it is. Raises UserError naming what is missing or wrong.

    The hash is of all that it says: with other rates, other codes.
    """
    said: dict[str, Any] = {"codes_per_frame": 1, **told}
    for key in ("sample_rate", "codes_per_frame", "codebook_size"):
        if type(said.get(key)) is not int or not 0 < said[key] < 2**31:
            raise program.error(f"says {key} {said.get(key)!r}; wanted is a whole number above 0")
    rate: Any = said.get("frame_rate")
    if type(rate) not in (int, float) or not (math.isfinite(rate) and 0 < rate <= said["sample_rate"]):
        raise program.error(f"says frame_rate {rate!r}; wanted is a number of frames per second")
    for key in ("name", "hash"):
        if not isinstance(said.get(key), str) or not said[key]:
            raise program.error(f"says {key} {said.get(key)!r}; wanted is a text that changes with the weights")
    keys = ("name", "hash", "sample_rate", "frame_rate", "codes_per_frame", "codebook_size")
    described = json.dumps([said[key] if key != "frame_rate" else float(rate) for key in keys])
    return CodecInfo(
        name=CommandCodec.name,
        hash=hashlib.sha256(described.encode()).hexdigest(),
        sample_rate=said["sample_rate"],
        frame_rate=float(rate),
        codes_per_frame=said["codes_per_frame"],
        codebook_size=said["codebook_size"],
    )


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, at which it ends; one that does not is killed."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
