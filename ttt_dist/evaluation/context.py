"""What a part of an evaluation works with: the model, its codec and templates, the judges, and where speech is written."""

import multiprocessing
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttt_dist.audio import Codec, UtteranceReader, load_codec, read_audio, resample, write_wav
from ttt_dist.audio.batches import choose_device
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.ears import Heard, listen
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.judge import Judge, load_judge
from ttt_dist.evaluation.judge_registry import labels
from ttt_dist.evaluation.metrics.meteor import Meteor
from ttt_dist.evaluation.metrics.quality import Quality
from ttt_dist.evaluation.sound_sources import Sound
from ttt_dist.inference.decoder import SMALL, Decoder, Request, num_cores
from ttt_dist.inference.detokenizer import Result
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import Entry, with_paths
from ttt_dist.model.hf.folder import ModelFolder, load_folder
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.util.atomic_files import writing
from ttt_dist.util.console import note


@dataclass(frozen=True)
class Speech:
    """A response, the file that it was written to (None where nothing was said), and what the judges hear in it."""

    result: Result
    wav: str | None
    heard: Heard = field(default_factory=dict)

    @property
    def first(self) -> str:
        """What the first judge hears."""
        return next(iter(self.heard.values()), "")

    def record(self) -> dict[str, Any]:
        """How a record tells of it."""
        return {"wav": self.wav, "codes": len(self.result.codes), "finish": self.result.finish}


@dataclass(kw_only=True)
class EvalContext:
    """Opened once per process."""

    args: EvalArgs
    folder: ModelFolder
    decoder: Decoder
    codec: Codec
    template: ChatTemplate
    judges: dict[str, Judge]
    """By label, in the order of the command line; none where nothing is judged."""
    speaker: str | None = None
    """Who is named in prompts that name a speaker, where an item does not."""
    quality: Quality | None = None
    meteor: Meteor | None = None
    readers: dict[int, UtteranceReader] = field(default_factory=dict)
    """Of recordings, by sample rate in Hz."""
    _told: bool = False

    @classmethod
    def open(cls, args: EvalArgs, speaks: bool, is_judged: bool) -> "EvalContext":
        """Load what the args names. Raises UserError where something is missing, or the codec cannot speak and must, or the model
        cannot write as the args says.
        """
        folder = load_folder(args.model, device=str(choose_device(None)))
        take_cores(args.workers, sum(weight.numel() for weight in folder.model.parameters()) < SMALL)
        codec = load_codec(folder.codec, decoder_command=args.decoder_command)
        if speaks:
            codec.require_decoder()
        decoder = Decoder(folder, args.batch)
        decoder.require_mode(args.decoding)
        template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
        if args.template:
            template.require(args.template)
        judges = {
            label: load_judge(spec, decoder, codec, template, args.decoding)
            for label, spec in (labels(args.judges) if is_judged else {}).items()
        }
        return cls(
            args=args,
            folder=folder,
            decoder=decoder,
            codec=codec,
            template=template,
            judges=judges,
            speaker=_usual_speaker(folder, args.template),
            quality=Quality() if args.quality else None,
            meteor=Meteor() if args.meteor else None,
        )

    def encode_audio(self, items: Sequence[Item], item_errors: ItemErrors) -> list[tuple[Item, list[np.ndarray]]]:
        """The codes of each item's recordings, in the order of its clips."""
        rate = self.codec.sample_rate
        waves = item_errors.each(
            ((item,) for item in items), lambda item: [self._read(clip, rate) for clip in clips(item.entry)]
        )
        codes = iter(self.codec.encode([wave for _, recordings in waves for wave in recordings]))
        return [(item, [next(codes) for _ in recordings]) for item, recordings in waves]

    def request(self, item: Item, entry: Entry, codes: Sequence[np.ndarray], turn: int = 0) -> Request:
        """The prompt of the evaluation's template, and a seed that depends on its own, the item and the turn alone.

        Raises UserError where the prompt is empty or too long for the model.
        """
        digest = blake2b(f"{self.args.seed}/{item.id}/{turn}".encode(), digest_size=4).digest()
        if self.speaker and not entry.get("speaker"):
            entry = {**entry, "speaker": self.speaker}
            if not self._told:
                self._told = True
                note(f"items without a speaker are spoken as {self.speaker}, the commonest of the model's training")
        prompt = self.template.prompt(self.args.template, entry, codes)
        request = Request(prompt, int.from_bytes(digest, "little"))
        self.decoder.require(request)
        return request

    def generate(
        self, rows: Sequence[tuple[Item, Request]], done: Callable[[], None], **changes: Any
    ) -> list[tuple[Item, Result]]:
        """Responses, with some decoding settings changed."""
        settings: DecodeSettings = replace(self.args.decoding, **changes)
        results = self.decoder.generate([request for _, request in rows], settings, done)
        return [(item, result) for (item, _), result in zip(rows, results, strict=True)]

    def synthesize(self, item: Item, result: Result, turn: int = 0) -> str | None:
        """Write a response's speech; its name below the results, None where the model said nothing."""
        if not len(result.codes):
            return None
        # Two ids may differ in what no file name can hold.
        digest = blake2b(item.id.encode(), digest_size=4).hexdigest()
        stem = f"{re.sub(r'[^A-Za-z0-9_-]', '_', item.id)[:60]}-{digest}"
        name = f"wav/{self.args.row.name}/{stem}{f'-{turn}' if turn else ''}.wav"
        with writing(self.args.out / name):
            write_wav(self.args.out / name, self.codec.decode(result.codes), self.codec.sample_rate)
        return name

    def seconds(self, result: Result) -> float:
        """Of sound."""
        return round(len(result.codes) / self.codec.code_rate, 6)

    def synthesize_and_transcribe(
        self, results: Sequence[tuple[Item, Result]], item_errors: ItemErrors, done: Callable[[], None]
    ) -> list[tuple[Item, Speech]]:
        """Write the speech of responses, and have the judges transcribe it."""
        spoken = item_errors.each(results, lambda item, result: Speech(result, self.synthesize(item, result)))
        heard = listen(self.judges, self.spoken(spoken), item_errors, done)
        silent = {item.id: dict.fromkeys(self.judges, "") for item, one in spoken if not one.wav}
        known = heard | silent
        return [(item, replace(one, heard=known[item.id])) for item, one in spoken if item.id in known]

    def spoken(self, said: Sequence[tuple[Item, Speech]]) -> list[tuple[Item, Sound]]:
        """What was written of it."""
        return [(item, partial(read_audio, self.args.out / one.wav)) for item, one in said if one.wav]

    def originals(self, items: Sequence[Item], item_errors: ItemErrors) -> dict[str, list[tuple[Item, Sound]]]:
        """`recording`: those of the items that have one; `codec`: the same through the codec and back."""
        coded = self.encode_audio([item for item in items if len(clips(item.entry)) == 1], item_errors)
        decoded = item_errors.each(
            ((item, codes[0]) for item, codes in coded), lambda _, codes: self.codec.decode(codes)
        )
        return {
            "recording": [(item, partial(self._read, clips(item.entry)[0])) for item, _ in coded],
            "codec": [(item, partial(resample, wave, self.codec.sample_rate)) for item, wave in decoded],
        }

    def _read(self, clip: Mapping[str, Any], sample_rate: int) -> Tensor:
        folder, root = self.args.data.parent, self.args.audio_root
        if sample_rate not in self.readers:
            self.readers[sample_rate] = UtteranceReader(folder, sample_rate, audio_root=root)
        return self.readers[sample_rate].read(locate(clip, folder, root))


def _usual_speaker(folder: ModelFolder, template: str) -> str | None:
    """The model's usual speaker, where prompts of the template name one."""
    return folder.usual_speaker if template and folder.template.names_speaker([template]) else None


def take_cores(workers: int, is_small: bool) -> None:
    """A worker's share of the cores; one thread per operation of a small model, so that no figure depends on their number."""
    if workers > 1 and multiprocessing.parent_process() is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(os.environ.get("LOCAL_RANK", "0")) % workers :: workers] or cores)
    torch.set_num_threads(1 if is_small else num_cores())


def locate(clip: Mapping[str, Any], folder: Path, audio_root: Path | None) -> Entry:
    """The clip with its paths as they are found: below `folder`; a benchmark's bare names may start from `audio_root`."""

    def find(name: str) -> str:
        if audio_root is None or os.path.exists(folder / name) or not os.path.exists(audio_root / name):
            return name
        return str((audio_root / name).absolute())

    return with_paths(dict(clip), find)
