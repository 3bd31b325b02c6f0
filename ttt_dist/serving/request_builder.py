"""A model with everything around it that the page needs: prompts by its templates, its codec, who sees whom."""

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ttt_dist.audio import Codec, read_audio
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Request
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.visibility import dense_mask
from ttt_dist.telemetry.plots import draw_mask
from ttt_dist.util.errors import UserError
from ttt_dist.util.field_docs import field_docs

TASKS = {"speak": ("tts",), "transcribe": ("asr",), "chat": ("audio_chat", "text_chat")}
"""What the page offers, and the templates that it takes."""
CHOICES = ("block", "steps", "temperature", "code_temperature")
"""Settings of decoding that a question may change."""
MAX_SECONDS = 600.0  # of a recording
MAX_SEED = 2**31 - 1
MAX_DRAWN = 1500  # tokens of the picture, whose memory grows with their square


Entry = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """An uploaded file, and the name that messages call it by."""

    data: bytes
    name: str


class RequestBuilder:
    """One exported model. Its methods may be called from any thread."""

    def __init__(self, folder: ModelFolder, codec: Codec, settings: DecodeSettings, name: str) -> None:
        self.folder = folder
        self.codec = codec
        self.settings = settings
        self.name = name
        self.template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
        self._codec_lock = threading.Lock()  # codecs keep buffers and draw from torch's global generator
        self._drawing_lock = threading.Lock()  # so does matplotlib with its fonts

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the page shows and offers."""
        known = self.folder.template.templates
        return {
            "name": self.name,
            "parameters": sum(weight.numel() for weight in self.folder.model.parameters()),
            "codec": self.codec.name,
            "code_rate": self.codec.code_rate,
            "sample_rate": self.codec.sample_rate,
            "no_speech": self.codec.no_decoder,
            "names_speakers": self.folder.template.name_speaker,
            "languages": self._languages(),
            "tasks": {task: [name for name in names if name in known] for task, names in TASKS.items()},
            "settings": {name: getattr(self.settings, name) for name in CHOICES},
            "fields": {name: _form_field(name, getattr(self.settings, name)) for name in CHOICES},
        }

    def _languages(self) -> list[str]:
        """Languages among which the templates choose; none where they all have one text."""
        forms = self.folder.template.forms()
        turns = [turn for names in TASKS.values() for name in names for turn in forms.get(name, [])]
        return sorted({lang for turn in turns if len(turn.contents) > 1 for lang in turn.contents})

    def question(self, form: Mapping[str, str], recording: Recording | None) -> tuple[Request, DecodeSettings]:
        """The request that a form asks for. Raises UserError naming what is wrong with it."""
        task, text, speaker = (form.get(name, "").strip() for name in ("task", "text", "speaker"))
        if task not in TASKS:
            raise UserError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        if speaker and not self.folder.template.name_speaker:
            raise UserError("speaker: this model was trained without speakers' names; leave it empty")
        changed = {name: _number(form, name, getattr(self.settings, name)) for name in CHOICES}
        settings = self.settings.changed(**changed, stop_at_last_span=task == "transcribe")
        seed = _number(form, "seed", 0)
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed is {seed}; give a whole number from 0 to {MAX_SEED}")
        entry = {"text": text, "speaker": speaker or None, "lang": form.get("lang")}
        return Request(self._prompt(task, form.get("template", ""), entry, recording), seed), settings

    def _prompt(self, task: str, template: str, entry: Entry, recording: Recording | None) -> np.ndarray:
        if task == "transcribe":
            if recording is None:
                raise UserError("there is no recording; record one, or choose a file")
            return self.template.prompt("asr", entry | {"audio": recording.name}, [self._encode(recording)])
        if not entry["text"] and (task == "speak" or recording is None):
            raise UserError("the text is empty; type one" + (", or record one" if task == "chat" else ""))
        if task == "speak":
            return self.template.prompt("tts", entry, [])
        name = template or TASKS["chat"][0]
        if name not in TASKS["chat"]:
            raise UserError(f"template is {name!r}; choose {' or '.join(TASKS['chat'])}")
        turn = {"role": "user", "text": entry["text"], "audio": recording and recording.name}
        codes = [self._encode(recording)] if recording else []
        return self.template.prompt(name, {"turns": [turn], "lang": entry["lang"]}, codes)

    def _encode(self, recording: Recording) -> np.ndarray:
        wave = read_audio(recording.data, self.codec.sample_rate, name=recording.name, most_seconds=MAX_SECONDS)
        with self._codec_lock:
            return self.codec.encode([wave])[0]

    def samples(self, codes: np.ndarray) -> np.ndarray:
        """The sound of codes, int16 [T] at the codec's rate. Raises UserError where the codec's decoder fails."""
        with self._codec_lock:
            wave = self.codec.decode(codes)
        return (wave.detach().clamp(-1, 1).cpu().numpy() * 32767).round().astype("<i2")

    def wav(self, codes: np.ndarray) -> bytes:
        """The same as a WAV file, mono."""
        file = io.BytesIO()
        soundfile.write(file, self.samples(codes), self.codec.sample_rate, subtype="PCM_16", format="WAV")
        return file.getvalue()

    def attention(self, prompt: np.ndarray, response: np.ndarray) -> bytes:
        """The picture of who sees whom in a sequence, a PNG file."""
        sample = Sample.of([Segment(prompt, False), Segment(response, True)])
        trained, written = self.folder.objective, float(self.settings.audio_mode != "diffusion")  # from left to right
        objective = replace(trained, p_trunc=0.0, p_mix=written, audio_ar=written)
        batch = collate([[sample]], self.folder.layout, objective, 0, [0], len(sample))
        sample_ids, position_ids, span_ids = (
            ids[0, :MAX_DRAWN] for ids in (batch.sample_ids, batch.position_ids, batch.span_ids)
        )
        visible = dense_mask(sample_ids, position_ids, span_ids).numpy()
        title = f"Who sees whom: {len(prompt)} tokens of the prompt, {len(response)} of the response"
        title += f" (the first {MAX_DRAWN} are drawn)" if len(sample) > MAX_DRAWN else ""
        picture = io.BytesIO()
        with self._drawing_lock:
            draw_mask(visible, sample_ids.numpy(), span_ids.numpy(), picture, title=title)
        return picture.getvalue()


def model_name(path: Path) -> str:
    """What to call the model of a folder: of RUN/export the run too."""
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "export" else path.name


def _form_field(name: str, value: float) -> dict[str, Any]:
    """How the page asks for a setting."""
    whole = isinstance(value, int)
    about = field_docs(DecodeSettings)[name]
    return {
        "label": name.replace("_", " ").capitalize(),
        "title": about,
        "min": 1 if whole else 0,
        "step": 1 if whole else 0.05,
    }


def _number(form: Mapping[str, str], name: str, default: Any) -> Any:
    """A field as a number of the default's kind. Raises UserError naming it."""
    value = form.get(name, "").strip()
    try:
        return type(default)(value) if value else default
    except ValueError:
        kind = "whole number" if isinstance(default, int) else "number"
        raise UserError(f"{name} is {value[:40]!r}; give a {kind}") from None
