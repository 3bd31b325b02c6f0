"""What a part of an evaluation works with: the model, its codec and templates, the judge, and where speech is written."""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_prep.entry import Entry, with_paths
from ttt_dist.audio import Codec, UtteranceReader, load_codec, read_audio, write_wav
from ttt_dist.audio.batches import choose_device
from ttt_dist.decode_settings import DecodeSettings
from ttt_dist.errors import UserError
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.judge import Judge, load_judge
from ttt_dist.evaluation.plan import Plan
from ttt_dist.files import writing
from ttt_dist.inference.decoder import SMALL, Decoder, Request, num_cores
from ttt_dist.inference.events import Result
from ttt_dist.model.huggingface import ModelFolder, load_folder
from ttt_dist.sequence.clips import clips
from ttt_dist.sequence.templates import ChatTemplate

T = TypeVar("T")


@dataclass(frozen=True)
class Speech:
    """A response, the file that it was written to (None where nothing was said), and what the judge hears in it."""

    result: Result
    wav: str | None
    heard: str = ""

    def record(self) -> dict[str, Any]:
        """How a record tells of it."""
        return {"wav": self.wav, "codes": len(self.result.codes), "finish": self.result.finish}


class Notes:
    """What happens on the way: items that could not be used, and how far it has come."""

    def __init__(self, tick: Callable[[float], None] = lambda _: None) -> None:
        self.problems: list[str] = []
        self.num_done = 0.0
        self._tick = tick

    def each(self, rows: Iterable[tuple[Any, ...]], make: Callable[..., T]) -> list[tuple[Item, T]]:
        """(item, what `make(item, ...)` gives) for every row that begins with its item; a refusal names the item's line."""
        made = []
        for item, *values in rows:
            try:
                made.append((item, make(item, *values)))
            except UserError as error:
                self.problems.append(f"{item.where}: {error}")
        return made

    def done(self, share: float) -> Callable[[], None]:
        """To be called when so much of an item is done."""
        return lambda: self.advance(share)

    def advance(self, amount: float) -> None:
        """So much more of the items is done."""
        self.num_done += amount
        self._tick(amount)


@dataclass
class Tools:
    """Opened once per process."""

    plan: Plan
    folder: ModelFolder
    decoder: Decoder
    codec: Codec
    template: ChatTemplate
    reader: UtteranceReader
    judge: Judge | None

    @property
    def num_threads(self) -> int:
        """Threads that may work on a sample of their own each."""
        on_cuda = next(self.folder.model.parameters()).is_cuda
        return 1 if on_cuda else max(num_cores() // torch.get_num_threads(), 1)

    @classmethod
    def open(cls, plan: Plan, speaks: bool, is_judged: bool) -> "Tools":
        """Load what the plan names. Raises UserError where something is missing, or the codec cannot speak and must."""
        folder = load_folder(plan.model, device=str(choose_device(None)))
        take_cores(plan.workers, sum(weight.numel() for weight in folder.model.parameters()) < SMALL)
        codec = load_codec(folder.codec, decoder_command=plan.decoder_command)
        if speaks:
            codec.require_decoder()
        decoder = Decoder(folder, plan.batch)
        template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
        if plan.template:
            template.require(plan.template)
        reader = UtteranceReader(plan.data.parent, codec.sample_rate, audio_root=plan.audio_root)
        judge = load_judge(plan.judge, decoder, codec, template, plan.decoding) if is_judged else None
        return cls(plan, folder, decoder, codec, template, reader, judge)

    def hear(self, items: Sequence[Item], notes: Notes) -> list[tuple[Item, list[np.ndarray]]]:
        """The codes of each item's recordings, in the order of its clips."""
        waves = notes.each(((item,) for item in items), lambda item: [self._read(clip) for clip in clips(item.entry)])
        codes = iter(self.codec.encode([wave for _, recordings in waves for wave in recordings]))
        return [(item, [next(codes) for _ in recordings]) for item, recordings in waves]

    def request(self, item: Item, entry: Entry, codes: Sequence[np.ndarray], turn: int = 0) -> Request:
        """The prompt of the plan's template, and a seed that depends on the plan's, the item and the turn alone.

        Raises UserError where the prompt is empty or too long for the model.
        """
        digest = blake2b(f"{self.plan.seed}/{item.id}/{turn}".encode(), digest_size=4).digest()
        prompt = self.template.prompt(self.plan.template, entry, codes)
        request = Request(prompt, int.from_bytes(digest, "little"))
        self.decoder.require(request)
        return request

    def answer(
        self, rows: Sequence[tuple[Item, Request]], done: Callable[[], None], **changes: Any
    ) -> list[tuple[Item, Result]]:
        """Responses, with some decoding settings changed."""
        settings: DecodeSettings = replace(self.plan.decoding, **changes)
        results = self.decoder.generate([request for _, request in rows], settings, done)
        return [(item, result) for (item, _), result in zip(rows, results, strict=True)]

    def speak(self, item: Item, result: Result, turn: int = 0) -> str | None:
        """Write a response's speech; its name below the results, None where the model said nothing."""
        if not len(result.codes):
            return None
        # Two ids may differ in what no file name can hold.
        digest = blake2b(item.id.encode(), digest_size=4).hexdigest()
        stem = f"{re.sub(r'[^A-Za-z0-9_-]', '_', item.id)[:60]}-{digest}"
        name = f"wav/{self.plan.task}/{stem}{f'-{turn}' if turn else ''}.wav"
        with writing(self.plan.out / name):
            write_wav(self.plan.out / name, self.codec.decode(result.codes), self.codec.sample_rate)
        return name

    def say(
        self, results: Sequence[tuple[Item, Result]], notes: Notes, done: Callable[[], None]
    ) -> list[tuple[Item, Speech]]:
        """Write the speech of responses, and have the judge transcribe it."""
        spoken = notes.each(results, lambda item, result: Speech(result, self.speak(item, result)))
        heard = self._transcribe([(item, self.plan.out / one.wav) for item, one in spoken if one.wav], notes, done)
        said = [(item, replace(one, heard=heard.get(item.id, ""))) for item, one in spoken]
        return [(item, one) for item, one in said if item.id in heard or one.wav is None]

    def _transcribe(self, rows: Sequence[tuple[Item, Path]], notes: Notes, done: Callable[[], None]) -> dict[str, str]:
        """What the judge hears in each file, by the item's id. Where it fails, each is tried alone."""
        assert self.judge is not None
        judge = self.judge

        def listen(rows: Sequence[tuple[Item, Path]]) -> list[str]:
            waves = [read_audio(path, judge.sample_rate) for _, path in rows]
            return judge.transcribe(waves, [item.lang for item, _ in rows], done)

        try:
            return {item.id: text for (item, _), text in zip(rows, listen(rows), strict=True)}
        except UserError:
            return {item.id: text for item, text in notes.each(rows, lambda *row: listen([row])[0])}

    def _read(self, clip: Mapping[str, Any]) -> Tensor:
        return self.reader.read(locate(clip, self.plan.data.parent, self.plan.audio_root))


def take_cores(workers: int, is_small: bool) -> None:
    """A worker's share of the cores; one thread per operation of a small model, so that no figure depends on their number."""
    if workers > 1 and multiprocessing.parent_process() is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(os.environ.get("LOCAL_RANK", "0")) % workers :: workers] or cores)
    torch.set_num_threads(1 if is_small else num_cores())


def locate(clip: Mapping[str, Any], folder: Path, audio_root: Path | None) -> Entry:
    """The clip with its paths as they are found: below `folder`; a benchmark's bare names may start from `audio_root`."""

    def find(name: str) -> str:
        if audio_root is None or (folder / name).exists() or not (audio_root / name).exists():
            return name
        return str((audio_root / name).absolute())

    return with_paths(dict(clip), find)
