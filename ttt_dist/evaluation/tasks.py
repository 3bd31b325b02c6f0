"""Tasks: a manifest in, one record per utterance out. What cannot be used is named, counted and left out."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ttt_dist.audio import Codec, UtteranceReader, load_codec, read_audio, write_wav
from ttt_dist.errors import UserError
from ttt_dist.evaluation.judge import ModelJudge
from ttt_dist.evaluation.metrics import Score
from ttt_dist.files import writing
from ttt_dist.inference.decoder import Decoder, Request, Result
from ttt_dist.inference.settings import DecodeSettings
from ttt_dist.model.huggingface import ModelFolder
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.telemetry.console import Progress

Record = dict[str, Any]
T = TypeVar("T")
IN_MEMORY = 256  # waveforms held at a time


@dataclass(frozen=True)
class Item:
    """One line of the manifest: what a task needs of it."""

    id: str
    text: str
    entry: Record
    where: str
    """File and line, for messages."""


@dataclass
class Outcome:
    """What a task gives back."""

    records: list[Record]
    errors: list[str] = field(default_factory=list)
    """One message for each utterance that was left out."""

    @property
    def score(self) -> Score:
        return sum((Score.of(record["reference"], record["hypothesis"]) for record in self.records), Score())


@dataclass
class Setting:
    """The model and all that decoding and scoring with it take."""

    reader: UtteranceReader
    decoder: Decoder
    codec: Codec
    template: ChatTemplate
    judge: ModelJudge
    decoding: DecodeSettings
    seed: int

    @classmethod
    def of(
        cls,
        folder: ModelFolder,
        decoding: DecodeSettings,
        batch_size: int,
        seed: int,
        root: Path,
        audio_root: Path | None,
        decoder_command: str | None = None,
    ) -> "Setting":
        """`root` is the manifest's folder, `audio_root` the one that all audio lies in (default: the same).

        `decoder_command` makes the speech in the codec's stead.
        """
        decoder = Decoder.from_folder(folder, batch_size)
        codec = load_codec(folder.codec, decoder_command=decoder_command)
        template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
        reader = UtteranceReader(root, codec.sample_rate, audio_root=audio_root)
        return cls(reader, decoder, codec, template, ModelJudge(decoder, codec, template, decoding), decoding, seed)


def read_items(path: Path, limit: int | None = None) -> tuple[list[Item], list[str]]:
    """The first `limit` lines of a JSONL manifest, and a message for each that is broken or lacks a field."""
    items, errors = [], []
    try:
        lines = path.read_text(encoding="utf8").split("\n")  # splitlines would also cut at U+2028 within a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--data {path}: cannot be read ({error}); name a JSONL manifest") from error
    for number, line in enumerate(lines[:limit], start=1):
        if line.strip():
            try:
                items.append(_item(line, f"{path}:{number}", number))
            except UserError as error:
                errors.append(str(error))
    return items, errors


def _item(line: str, where: str, number: int) -> Item:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); correct or remove the line") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: no JSON object; correct or remove the line")
    if not isinstance(entry.get("text"), str):
        raise UserError(f"{where}: lacks 'text'; add the reference text, or remove the line")
    return Item(str(entry.get("id", number)), entry["text"], entry, where)


def asr(setting: Setting, items: Sequence[Item], out: Path) -> Outcome:
    """Transcribe each item's audio and score it against its text."""
    outcome = Outcome([])
    with Progress(len(items), "transcribing", "utterance") as progress:
        for part in _parts(items):
            usable, waves = _each(part, lambda item: _read(setting.reader, item), outcome.errors)
            progress.advance(len(part) - len(usable))
            texts = setting.judge.transcribe(waves, progress.advance)
            outcome.records += [_record(item, text) for item, text in zip(usable, texts, strict=True)]
    return outcome


def tts(setting: Setting, items: Sequence[Item], out: Path) -> Outcome:
    """Speak each text, write the WAV below `out`, read it back, and score the judge's transcript of it.

    Raises UserError, before anything is spoken, where the codec cannot decode.
    """
    setting.codec.require_decoder()
    outcome = Outcome([])
    with Progress(2 * len(items), "speaking, then transcribing", "step") as progress:
        for part in _parts(items):
            usable, requests = _each(part, lambda item: _speech_request(setting, item), outcome.errors)
            progress.advance(2 * (len(part) - len(usable)))
            results = setting.decoder.generate(requests, setting.decoding, progress.advance)
            names = [_write_speech(setting, item, result, out) for item, result in zip(usable, results, strict=True)]
            waves = [read_audio(out / name, setting.codec.sample_rate) for name in names if name]
            heard = iter(setting.judge.transcribe(waves, progress.advance))
            for item, result, name in zip(usable, results, names, strict=True):
                said = {"wav": name, "codes": len(result.codes), "finish": result.finish}
                outcome.records.append(_record(item, next(heard) if name else "") | said)
            progress.advance(names.count(None))
    return outcome


TASKS: dict[str, Callable[[Setting, Sequence[Item], Path], Outcome]] = {"asr": asr, "tts": tts}


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + IN_MEMORY] for start in range(0, len(items), IN_MEMORY))


def _each(items: Sequence[Item], make: Callable[[Item], T], errors: list[str]) -> tuple[list[Item], list[T]]:
    """The items that `make` accepts and what it gives for them; its refusals go to `errors`, with the line."""
    usable, made = [], []
    for item in items:
        try:
            made.append(make(item))
            usable.append(item)
        except ValueError as error:
            errors.append(f"{item.where}: {error}")
    return usable, made


def _read(reader: UtteranceReader, item: Item) -> Tensor:
    """The item's waveform at the codec's rate."""
    audio = item.entry.get("audio")
    if not isinstance(audio, str | list) or not audio:
        raise UserError("lacks 'audio'; name the file, or remove the line")
    return reader.read(item.entry)


def _speech_request(setting: Setting, item: Item) -> Request:
    """The prompt, and a seed that depends on the run's seed and the item alone, not on its place in the manifest."""
    digest = blake2b(f"{setting.seed}/{item.id}".encode(), digest_size=4).digest()
    return Request(setting.template.tts_prompt(item.text, item.entry.get("speaker")), int.from_bytes(digest, "little"))


def _write_speech(setting: Setting, item: Item, result: Result, out: Path) -> str | None:
    """Name of the WAV below `out`; None where the model said nothing."""
    if not len(result.codes):
        return None
    digest = blake2b(item.id.encode(), digest_size=4).hexdigest()  # two ids may differ in what a file name cannot hold
    name = f"wav/{re.sub(r'[^A-Za-z0-9_-]', '_', item.id)[:60]}-{digest}.wav"
    with writing(out / name):
        write_wav(out / name, setting.codec.decode(result.codes), setting.codec.sample_rate)
    return name


def _record(item: Item, hypothesis: str) -> Record:
    score = Score.of(item.text, hypothesis).to_dict()
    speaker = {"speaker": item.entry["speaker"]} if "speaker" in item.entry else {}
    return {"id": item.id, **speaker, "reference": item.text, "hypothesis": hypothesis, **score}
