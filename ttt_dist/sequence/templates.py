"""Templates: how an utterance or a chat becomes a sample, for training and for prompts alike (method: tokens, samples).

ChatML turns; audio of the user between begin_of_audio and end_of_audio; speech of the assistant interleaved with its
text, `text_ratio` text tokens then `audio_ratio` codes, the last span carrying all remaining audio.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ttt_dist.errors import UserError
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout

_PIECE = re.compile("(" + "|".join([r"<\|audio_\d+\|>", *map(re.escape, PIECES.values())]) + ")")
_NAME_OF_PIECE = {piece: name for name, piece in PIECES.items()}


@dataclass
class TemplateSettings:
    """Saved with the samples and the exported model: a prompt must read as it did in training."""

    text_ratio: int = 13
    """Text tokens between spans."""
    audio_ratio: int = 26
    """Codes of every span but the last."""
    asr_system: str = "Transcribe the speech."
    tts_system: str = "Speak the text."
    name_speaker: bool = False
    """Name the speaker in TTS prompts."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ChatTemplate:
    """Renders samples and prompts for one tokenizer and token layout."""

    def __init__(self, tokenizer: TextTokenizer, layout: TokenLayout, settings: TemplateSettings | None = None) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.settings = settings or TemplateSettings()
        self._fixed = lru_cache(maxsize=256)(self._encode)  # role headers and system prompts recur in every sample

    def asr(self, codes: np.ndarray, text: str) -> Sample:
        """Speech in; its transcript, interleaved with the same codes, out."""
        return self._sample(self.asr_prompt(codes), self.interleave(self._text(text), codes))

    def tts(self, text: str, codes: np.ndarray, speaker: str | None = None) -> Sample:
        """Text in; the text, interleaved with its speech, out."""
        return self._sample(self.tts_prompt(text, speaker), self.interleave(self._text(text), codes))

    def asr_prompt(self, codes: np.ndarray) -> np.ndarray:
        """Ids up to and including the assistant's header, int32."""
        content = [[self.layout.begin_of_audio], self.layout.code_ids(codes), [self.layout.end_of_audio]]
        return self._prompt(self.settings.asr_system, _join(content))

    def tts_prompt(self, text: str, speaker: str | None = None) -> np.ndarray:
        """Ids up to and including the assistant's header, int32; the speaker is used where `name_speaker` is set."""
        named = f"{speaker}: {text}" if self.settings.name_speaker and speaker else text
        return self._prompt(self.settings.tts_system, self._text(named))

    def interleave(self, text_ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """T_1 A_1 ... T_M A_M (method: tokens). Text that outlasts the codes comes before the last span."""
        layout, settings = self.layout, self.settings
        audio_ids = layout.code_ids(codes)
        if not len(audio_ids):
            return np.asarray(text_ids, dtype=np.int32)
        parts: list[Any] = []
        while len(text_ids) > settings.text_ratio and len(audio_ids) > settings.audio_ratio:
            parts += [text_ids[: settings.text_ratio], [layout.begin_of_audio]]
            parts += [audio_ids[: settings.audio_ratio], [layout.end_of_audio_new]]
            text_ids, audio_ids = text_ids[settings.text_ratio :], audio_ids[settings.audio_ratio :]
        parts += [text_ids, [layout.begin_of_quad], audio_ids, [layout.end_of_audio_span_last]]
        return _join(parts)

    def chat(self, messages: Sequence[dict[str, str]]) -> Sample:
        """ChatML of {"role", "content"} messages whose strings may hold <|audio_N|> and delimiters; assistant turns are targets."""
        segments: list[Segment] = []
        for number, message in enumerate(messages):
            is_target = message["role"] == "assistant"
            body = _join([self.parse(message["content"]), [self.layout.im_end]])
            segments.append(Segment(self._header(message["role"], first=number == 0), False))
            segments.append(Segment(body, is_target))
        return Sample(segments)

    def parse(self, content: str) -> np.ndarray:
        """Ids of a string of the released format: audio codes and delimiters by name, the rest by the text tokenizer."""
        parts: list[Any] = []
        for piece in filter(None, _PIECE.split(content)):
            if piece.startswith("<|audio_"):
                parts.append(self.layout.code_ids(np.array([int(piece[8:-2])])))
            elif piece in _NAME_OF_PIECE:
                parts.append([self.layout.special_ids[_NAME_OF_PIECE[piece]]])
            else:
                parts.append(self._encode(piece))
        return _join(parts)

    def _sample(self, prompt: np.ndarray, response: np.ndarray) -> Sample:
        return Sample([Segment(prompt, False), Segment(_join([response, [self.layout.im_end]]), True)])

    def _prompt(self, system: str, content: np.ndarray) -> np.ndarray:
        end = [self.layout.im_end]
        system_turn = [self._header("system", first=True), self._fixed(system), end]
        return _join([*system_turn, self._header("user"), content, end, self._header("assistant")])

    def _header(self, role: str, first: bool = False) -> np.ndarray:
        return _join([[] if first else self._fixed("\n"), [self.layout.im_start], self._fixed(role + "\n")])

    def _text(self, text: str) -> np.ndarray:
        ids = self._encode(text.strip())
        if not len(ids):
            raise UserError("the text has no tokens: give it a text or leave the utterance out")
        return ids

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text), dtype=np.int32)


def _join(parts: Sequence[Any]) -> np.ndarray:
    """Concatenate id sequences into int32 [n]."""
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts]) if parts else np.zeros(0, np.int32)
