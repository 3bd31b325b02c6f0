"""Judges: what turns speech into text so that it can be scored.

`load_judge` opens one by its name: the model itself, a published recogniser in a folder, or a command.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ttt_dist.audio import Codec, write_wav
from ttt_dist.audio.codec import Codes
from ttt_dist.audio.command import Command
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.evaluation.judge_registry import FLAG, find_judge, parse
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import call_with


class Judge(Protocol):
    """Transcribes; `name` goes into every score."""

    name: str
    sample_rate: int
    """Hz, of the waveforms that it takes."""

    def transcribe(
        self, waves: Sequence[Tensor], langs: Sequence[str | None], on_done: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Texts of waveforms [T_i], whose languages may be known (`en`, `zh-CN`); `on_done` is called after each.

        No waveform is empty. Raises UserError where one cannot be transcribed.
        """


def load_judge(
    spec: str,
    decoder: Decoder,
    codec: Codec,
    template: ChatTemplate,
    settings: DecodeSettings,
    device: str | None = None,
) -> Judge:
    """One of JUDGES, or of one's own; it takes what it names of the arguments. Raises UserError naming what is wrong."""
    kind, place = parse(spec)
    row = find_judge(kind)
    given = {"decoder": decoder, "codec": codec, "template": template, "settings": settings, "device": device}
    judge: Judge = call_with(
        row.make, f"{FLAG} {spec}", *([Path(place) if row.is_folder else place] if place else []), **given
    )
    missing = [name for name in ("name", "sample_rate", "transcribe") if not hasattr(judge, name)]
    if missing:
        raise UserError(f"{FLAG} {spec}: lacks {', '.join(missing)}; a judge has all of {Judge.__module__}.Judge")
    return judge


class ModelJudge:
    """Transcribes with the model's own ASR prompt, greedy text whatever the settings say about sampling."""

    name = "the model itself"

    def __init__(self, decoder: Decoder, codec: Codec, template: ChatTemplate, settings: DecodeSettings) -> None:
        self.decoder = decoder
        self.codec = codec
        self.template = template
        self.sample_rate = codec.sample_rate
        self.settings = replace(settings, temperature=0.0, code_temperature=0.0, stop_at_last_span=True)

    def transcribe(
        self, waves: Sequence[Tensor], langs: Sequence[str | None], on_done: Callable[[], None] = lambda: None
    ) -> list[str]:
        """As `Judge`, by the ASR prompt of each language. Raises UserError where one is too long for the model."""
        requests = [self._request(codes, lang) for codes, lang in zip(self.codec.encode(waves), langs, strict=True)]
        return [result.text for result in self.decoder.generate(requests, self.settings, on_done)]

    def _request(self, codes: Codes, lang: str | None) -> Request:
        return Request(self.template.prompt("asr", {"audio": "given", "lang": lang}, [codes]))


class CommandJudge:
    """Transcribes by a program of the user's, such as a recogniser of another framework.

    `{wav}` stands for a file with speech at 16 kHz, `{text}` for the file in which it must leave the text: it runs once
    for each. Or, for a program that takes long to start, `{wavs}` stands for a file with a path to speech in every line,
    `{texts}` for the one that it must give as many lines.
    """

    sample_rate = 16000

    def __init__(self, command: str) -> None:
        self.name = f"command:{command}"
        self.takes_all = "{wavs}" in command
        names = ("{wavs}", "{texts}") if self.takes_all else ("{wav}", "{text}")
        self.command = Command(FLAG, command, names, f"command:python recognise.py {' '.join(names)}")

    def transcribe(
        self, waves: Sequence[Tensor], langs: Sequence[str | None], on_done: Callable[[], None] = lambda: None
    ) -> list[str]:
        """As `Judge`; the languages are not told. Raises UserError where the command fails or writes something else."""
        with tempfile.TemporaryDirectory(prefix="ttt-judge-") as folder:
            paths = [Path(folder, f"{number}.wav") for number in range(len(waves))]
            for path, wave in zip(paths, waves, strict=True):
                write_wav(path, wave, self.sample_rate)
            if not self.takes_all:
                return [self._one(path, on_done) for path in paths]
            texts = self._all(paths) if paths else []
        for _ in texts:
            on_done()
        return texts

    def _one(self, wav: Path, on_done: Callable[[], None]) -> str:
        text = wav.with_suffix(".txt")
        self.command.run({"{wav}": str(wav), "{text}": str(text)})
        on_done()
        return " ".join(self._read(text).split())

    def _all(self, wavs: Sequence[Path]) -> list[str]:
        listed, texts = wavs[0].with_name("wavs"), wavs[0].with_name("texts")
        listed.write_text("".join(f"{wav}\n" for wav in wavs), encoding="utf8")
        self.command.run({"{wavs}": str(listed), "{texts}": str(texts)})
        lines = self._read(texts).removesuffix("\n").split("\n")
        if len(lines) != len(wavs):
            raise UserError(
                f"{FLAG}: {self.command.program} wrote {len(lines)} lines of text for {len(wavs)} of speech; "
                "let it write one each, empty where it hears nothing"
            )
        return [line.strip() for line in lines]

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{FLAG}: {self.command.program} ended well, but wrote no text in UTF-8 ({error}); correct it"
            ) from error
