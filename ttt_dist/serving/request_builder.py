"""A model with everything around it that the page needs: prompts by its templates, its codec, who sees whom."""

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ttt_dist.audio import Codec, read_audio
from ttt_dist.audio.ffmpeg import is_installed
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Request
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.visibility import visible_end
from ttt_dist.serving.chat import Turn, prompt_of
from ttt_dist.util.errors import UserError
from ttt_dist.util.field_docs import field_docs

TASKS = {"speak": ("tts",), "transcribe": ("asr",), "chat": ("audio_chat", "text_chat")}
"""What the page offers, and the templates that it takes."""
CHOICES = ("block", "steps", "temperature", "code_temperature")
"""Settings of decoding that a question may change, as far as they change anything."""
MAX_SECONDS = 600.0  # of a recording
MAX_SEED = 2**31 - 1
MAX_DRAWN = 4000  # tokens of a sequence whose attention is told


@dataclass(frozen=True)
class Recording:
    """An uploaded file, and the name that messages call it by."""

    data: bytes
    name: str


@dataclass(frozen=True)
class Question:
    """What a form asks for."""

    request: Request
    settings: DecodeSettings
    turns: tuple[Turn, ...] = ()
    """Of a chat: what its prompt holds, the question last."""
    left_out: int = 0
    """Turns of the chat that found no room in the prompt."""
    speaker: str | None = None
    """Whose voice the prompt asks for."""

    def answered(self, text: str, codes: np.ndarray) -> tuple[Turn, ...]:
        """The chat with its answer; an empty one is no turn, nor is what it was asked."""
        if not self.turns or not (text.strip() or len(codes)):
            return self.turns[:-1]
        return *self.turns, Turn("assistant", text, codes if len(codes) else None)


class RequestBuilder:
    """One exported model. Its methods may be called from any thread."""

    def __init__(self, folder: ModelFolder, codec: Codec, settings: DecodeSettings, name: str) -> None:
        self.folder = folder
        self.codec = codec
        self.settings = settings
        self.name = name
        self.template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
        self._codec_lock = threading.Lock()  # codecs keep buffers and draw from torch's global generator

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
            "speakers": self.folder.speakers if self.folder.template.name_speaker else [],
            "formats": ["WAV", "FLAC", "OGG", "MP3", *(["M4A", "WebM"] if is_installed() else [])],
            "languages": self._languages(),
            "tasks": {task: [name for name in names if name in known] for task, names in TASKS.items()},
            "settings": {name: getattr(self.settings, name) for name in self._choices},
            "fields": {name: _form_field(name, getattr(self.settings, name)) for name in self._choices},
        }

    @property
    def _choices(self) -> list[str]:
        return [name for name in CHOICES if name not in self.settings.idle(self.folder.objective.kind)]

    def _languages(self) -> list[str]:
        """Languages among which the templates choose; none where they all have one text."""
        forms = self.folder.template.forms()
        turns = [turn for names in TASKS.values() for name in names for turn in forms.get(name, [])]
        return sorted({lang for turn in turns if len(turn.contents) > 1 for lang in turn.contents})

    def question(self, form: Mapping[str, str], recording: Recording | None, before: Sequence[Turn] = ()) -> Question:
        """What a form asks for, of a chat after the turns `before`. Raises UserError naming what is wrong with it."""
        task, text, speaker, template = (form.get(name, "").strip() for name in ("task", "text", "speaker", "template"))
        lang = form.get("lang")
        if task not in TASKS:
            raise UserError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        changed = {name: _number(form, name, getattr(self.settings, name)) for name in CHOICES}
        settings = self.settings.changed(**changed, stop_at_last_span=task == "transcribe")
        settings.require_mode(self.folder.objective.kind, self.folder.objective.learns_audio_ar)
        seed = _number(form, "seed", 0)
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed is {seed}; give a whole number from 0 to {MAX_SEED}")
        told: dict[str, Any] = {}
        if task == "speak":
            told["speaker"] = voice = self._speaker(speaker)
            ids = self._speak_prompt(text, voice, lang)
        elif task == "transcribe":
            ids = self._transcribe_prompt(recording, lang)
        else:
            turns = (*before, self._turn(text, recording))
            ids, told["turns"] = self._chat_prompt(template, turns, lang, settings)
            told["left_out"] = len(turns) - len(told["turns"])
        return Question(Request(ids, seed), settings, **told)

    def _speaker(self, name: str) -> str | None:
        """Who is asked for; where nobody is, the model's usual speaker."""
        if name and not self.folder.template.name_speaker:
            raise UserError("speaker: this model was trained without speakers' names; leave it empty")
        return name or self.folder.usual_speaker

    def _speak_prompt(self, text: str, speaker: str | None, lang: str | None) -> np.ndarray:
        if not text:
            raise UserError("the text is empty; type one")
        return self.template.prompt("tts", {"text": text, "speaker": speaker, "lang": lang}, [])

    def _transcribe_prompt(self, recording: Recording | None, lang: str | None) -> np.ndarray:
        if recording is None:
            raise UserError("there is no recording; record one, or choose a file")
        return self.template.prompt("asr", {"audio": recording.name, "lang": lang}, [self._encode(recording)])

    def _turn(self, text: str, recording: Recording | None) -> Turn:
        if not text and recording is None:
            raise UserError("the text is empty; type one, or record one")
        return Turn("user", text, None if recording is None else self._encode(recording))

    def _chat_prompt(
        self, template: str, turns: Sequence[Turn], lang: str | None, settings: DecodeSettings
    ) -> tuple[np.ndarray, tuple[Turn, ...]]:
        """Leaves room for the longest answer, or half of what the model takes where that is more than half."""
        name, limit = template or TASKS["chat"][0], self.folder.max_length
        if name not in TASKS["chat"]:
            raise UserError(f"template is {name!r}; choose {' or '.join(TASKS['chat'])}")
        room = min(settings.max_text + settings.max_codes, limit - limit // 2)
        return prompt_of(self.template, name, turns, lang, limit - room)

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

    def attention(self, prompt: np.ndarray, response: np.ndarray) -> dict[str, Any]:
        """Who sees whom in a sequence: each token sees all before its `ends`. `spans` numbers audio spans, 0 being none;
        `tokens` says what each token is. Of a long sequence the first MAX_DRAWN tokens, `length` being all."""
        sample = Sample.of([Segment(prompt, False), Segment(response, True)])
        trained, written = self.folder.objective, float(self.settings.audio_mode != "diffusion")  # from left to right
        objective = replace(trained, p_trunc=0.0, p_draft=0.0, p_mix=written, audio_ar=written)
        batch = collate([[sample]], self.folder.layout, objective, 0, [0], len(sample))
        ends = visible_end(batch.sample_ids, batch.span_ids)[0]
        return {
            "length": len(sample),
            "prompt": len(prompt),
            "ends": ends[:MAX_DRAWN].tolist(),
            "spans": batch.span_ids[0, :MAX_DRAWN].tolist(),
            "tokens": [self._token_name(int(token)) for token in np.concatenate([prompt, response])[:MAX_DRAWN]],
        }

    def _token_name(self, token: int) -> str:
        return self.folder.layout.pieces.get(token) or self.folder.tokenizer.decode([token])


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
