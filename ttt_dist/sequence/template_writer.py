"""What a template says of one entry of a manifest, as ids: its turns, and what stands within each (docs/method.md#tokens-and-layouts).

`Form` is a template made ready, `EntryWriter` fills one entry in, `ContentWriter` knows the ids of what it is filled with:
text, recordings that are heard, speech interleaved with its text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ttt_dist.sequence.id_bytes import WIDTH, to_bytes
from ttt_dist.sequence.template_form import (
    ASSISTANT,
    AUDIO,
    CHAT_ROLES,
    DOCUMENT,
    NAMED_TEXT,
    SEGMENTS,
    SPOKEN,
    SYSTEM,
    TEXT_AUDIO,
    TEXT_SPEECH,
    TEXT_TURNS,
    TURNS,
    Piece,
    Turn,
)
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

Entry = Mapping[str, Any]
RECORDED = (AUDIO, *SPOKEN)
MOST_LANGUAGES = 256
_UNSPACED = re.compile("[\u2e80-\u9fff\uff00-\uffef\U00020000-\U0003ffff]")  # Chinese and Japanese write no space

Codes = np.ndarray | bytes
"""A recording: its codes [n], or what `ContentWriter.audio` made of them."""


class ContentWriter:
    """Writes contents for one tokenizer and token layout. All ids are bytes (`id_bytes`)."""

    def __init__(
        self, tokenizer: TextTokenizer, layout: TokenLayout, text_ratio: int, audio_ratio: int, last_span: str
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.text_ratio, self.audio_ratio, self.chunks = text_ratio, audio_ratio, last_span == "chunks"
        self._begin, self._end, self._inner_end, self._quad, self._last_end = (
            to_bytes([layout.special_ids[name]])
            for name in (
                "begin_of_audio",
                "end_of_audio",
                "end_of_audio_new",
                "begin_of_quad",
                "end_of_audio_span_last",
            )
        )
        # System prompts recur, and a text stands in prompt and response.
        self.encode = lru_cache(maxsize=256)(tokenizer.encode_to_bytes)
        twice = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("a")])
        self._puts_spaces = " " in twice.strip()  # sentencepiece models begin every text with a space

    def text(self, text: str) -> bytes:
        """Ids of text, stripped. Raises UserError where none is left."""
        ids = self.encode(text.strip())
        if not ids:
            raise UserError("the text has no tokens: give it a text or leave the utterance out")
        return ids

    def audio(self, codes: Codes) -> bytes:
        """Ids of a recording's codes. Raises UserError where it has none, or one outside the codebook."""
        if not len(codes):
            raise UserError("the audio has no codes: leave the utterance out")
        return codes if isinstance(codes, bytes) else self.layout.code_ids(codes).tobytes()

    def heard(self, audio_ids: bytes | None) -> bytes:
        """A recording in the user's turn. Raises UserError where it is missing."""
        return self._begin + _require(audio_ids) + self._end

    def spoken(self, text_ids: bytes, audio_ids: bytes | None) -> bytes:
        """T_1 A_1 ... T_M A_M: `text_ratio` ids of text and `audio_ratio` codes in turn (docs/method.md#tokens-and-layouts).

        Text that outlasts the codes comes before the last span, which is of the last kind and holds all codes that remain;
        with `chunks` they fill spans of `audio_ratio`, of which only the last is of the last kind.
        """
        audio_ids = _require(audio_ids)
        begin, end = self._begin, self._inner_end
        num_text, num_audio = self.text_ratio * WIDTH, self.audio_ratio * WIDTH
        parts: list[bytes] = []
        text_at = audio_at = 0
        while len(text_ids) - text_at > num_text and len(audio_ids) - audio_at > num_audio:
            text_stop, audio_stop = text_at + num_text, audio_at + num_audio
            parts += text_ids[text_at:text_stop], begin, audio_ids[audio_at:audio_stop], end
            text_at, audio_at = text_stop, audio_stop
        parts.append(text_ids[text_at:])
        while self.chunks and len(audio_ids) - audio_at > num_audio:
            parts += begin, audio_ids[audio_at : audio_at + num_audio], end
            audio_at += num_audio
        parts += self._quad, audio_ids[audio_at:], self._last_end
        return b"".join(parts)

    def sentence(self, text: str, audio_ids: bytes | None, is_first: bool, is_last: bool) -> bytes:
        """A sentence of a document and its speech. A space goes before it where the script, and not the tokenizer, has one."""
        spaced = not is_first and not self._puts_spaces and not _UNSPACED.match(text)
        begin, end = (self._quad, self._last_end) if is_last else (self._begin, self._inner_end)
        return self.encode(" " + text if spaced else text) + begin + _require(audio_ids) + end


def _require(audio_ids: bytes | None) -> bytes:
    if audio_ids is None:
        raise UserError("has no audio: add the recording, or leave the template out")
    return audio_ids


class Recordings(NamedTuple):
    """The ids of an entry's clips as bytes (`id_bytes`), by where they stand; None where a clip has not been encoded."""

    own: bytes | None
    turns: Sequence[bytes | None] = ()
    segments: Sequence[bytes | None] = ()
    speech: bytes | None = None


def sort_recordings(entry: Entry, audio_ids: Sequence[bytes]) -> Recordings:
    """Ids in the order of `clips(entry)`, sorted by place. Those at the end may be missing, as in a prompt."""
    turns, segments, speech = entry.get("turns"), entry.get("segments"), entry.get("speech")
    if not (turns or segments or speech):  # most entries: worth a line
        return Recordings(audio_ids[0] if audio_ids else None)
    left = iter(audio_ids)
    own = next(left, None) if entry.get("audio") and not segments else None
    of_turns = [next(left, None) if turn.get("audio") else None for turn in turns or ()]
    spoken = [next(left, None) for _ in segments or ()]
    return Recordings(own, of_turns, spoken, next(left, None) if speech else None)


Content = Callable[["EntryWriter"], bytes]
"""Writes what stands in a turn."""


class Form:
    """A template, ready for entries: what writes its turns is the same for all entries of a language."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.is_document = turns[0].role == DOCUMENT
        self.has_spoken_turns = any(turn.role == TURNS for turn in turns)
        self._turns = turns
        self._has_entrys = any(turn.role in (TURNS, TEXT_TURNS) for turn in turns)
        self._known: dict[str | None, tuple[tuple[str, ...], list[Content]]] = {}

    def turns(self, entry: Entry) -> tuple[tuple[str, ...], list[Content]]:
        """The roles of the turns, and what writes them. A system turn of the entry replaces the template's."""
        lang = entry.get("lang")
        lang = lang if isinstance(lang, str) else None
        if self._has_entrys:
            return self._find_turns(lang, entry)
        if lang not in self._known:
            if len(self._known) >= MOST_LANGUAGES:
                self._known.clear()
            self._known[lang] = self._find_turns(lang, entry)
        return self._known[lang]

    def _find_turns(self, lang: str | None, entry: Entry) -> tuple[tuple[str, ...], list[Content]]:
        found: list[tuple[str, Content]] = []
        for turn in self._turns:
            if turn.role in (TURNS, TEXT_TURNS):
                own = _own_turns(entry, with_audio=turn.role == TURNS)
                if any(role == SYSTEM for role, _ in own):
                    found = [pair for pair in found if pair[0] != SYSTEM]
                found += own
            else:
                found.append((turn.role, _content(turn.content(lang), turn.role)))
        return tuple(role for role, _ in found), [content for _, content in found]


def _content(pieces: tuple[Piece, ...], role: str) -> Content:
    """What writes a turn of the template."""
    if len(pieces) == 1 and pieces[0].is_field and pieces[0].value in RECORDED:
        return lambda writer: writer.recorded(pieces[0].value, role)
    if any(piece.is_field for piece in pieces):
        return lambda writer: writer.content(pieces, role)
    text = "".join(piece.value for piece in pieces)
    return lambda writer: writer.text(text)


def _own_turns(entry: Entry, with_audio: bool) -> list[tuple[str, Content]]:
    turns = entry.get("turns")
    if not turns:
        raise UserError("lacks 'turns': add the turns of the chat, or leave the template out")
    for number, turn in enumerate(turns, start=1):
        if turn.get("role") not in CHAT_ROLES:
            raise UserError(f"turn {number}: role is {turn.get('role')!r}, it must be one of {', '.join(CHAT_ROLES)}")
    return [
        (turn["role"], partial(EntryWriter.own_turn, index=n, with_audio=with_audio)) for n, turn in enumerate(turns)
    ]


class EntryWriter:
    """Writes one entry, what several of its samples share once."""

    def __init__(self, writer: ContentWriter, entry: Entry, codes: Sequence[Codes], name_speaker: bool) -> None:
        self.text = writer.text
        self.entry = entry
        self._writer = writer
        self._recordings = sort_recordings(entry, [writer.audio(clip) for clip in codes])
        self._name_speaker = name_speaker
        self._interleaved = b""

    @property
    def has_spoken_turns(self) -> bool:
        """Whether one of the entry's turns has a recording."""
        return any(turn.get("audio") for turn in self.entry.get("turns") or [])

    def content(self, pieces: Sequence[Piece], role: str) -> bytes:
        """Ids of a turn of the template. Text is tokenised in stretches as long as recordings leave them."""
        parts: list[bytes] = []
        text = ""
        for piece in pieces:
            if piece.is_field and piece.value in RECORDED:
                parts += [self._writer.encode(text if parts else text.lstrip()), self.recorded(piece.value, role)]
                text = ""
            else:
                text += self._text_of(piece)
        if not parts:
            return self._writer.text(text)
        return b"".join(parts) + self._writer.encode(text.rstrip())

    def own_turn(self, index: int, with_audio: bool) -> bytes:
        """A turn of the entry. The user's: its recording, then its text; the assistant's: the two interleaved."""
        turn = self.entry["turns"][index]
        try:
            text_ids = self._writer.text(_words(turn)) if turn.get("text") else b""
            if not (with_audio and turn.get("audio")):
                if not text_ids:
                    raise UserError("lacks 'text': add it, or leave the entry out")
                return text_ids
            if turn["role"] == ASSISTANT:
                return self._writer.spoken(text_ids, self._recordings.turns[index])
            return self._writer.heard(self._recordings.turns[index]) + text_ids
        except UserError as error:
            raise UserError(f"turn {index + 1}: {error}") from None

    def recorded(self, name: str, role: str) -> bytes:
        """What a placeholder for sound or speech stands for."""
        writer, recordings = self._writer, self._recordings
        if name == TEXT_AUDIO:
            if not self._interleaved:
                self._interleaved = writer.spoken(writer.text(_words(self.entry)), recordings.own)
            return self._interleaved
        if name == TEXT_SPEECH:
            text_ids = writer.text(_words(self.entry))
            return writer.spoken(text_ids, recordings.speech) if self.entry.get("speech") else text_ids
        if name == SEGMENTS:
            return self._segments()
        if role == "user":
            return writer.heard(recordings.own)
        return writer.spoken(b"", recordings.own)

    def _segments(self) -> bytes:
        """Each segment's text and speech."""
        segments = self.entry.get("segments")
        if not segments:
            raise UserError("lacks 'segments': add the sentences of the document, or leave the template out")
        parts: list[bytes] = []
        for number, (segment, audio_ids) in enumerate(zip(segments, self._recordings.segments, strict=True), start=1):
            try:
                parts.append(self._writer.sentence(_words(segment), audio_ids, number == 1, number == len(segments)))
            except UserError as error:
                raise UserError(f"segment {number}: {error}") from None
        return b"".join(parts)

    def _text_of(self, piece: Piece) -> str:
        if not piece.is_field:
            return piece.value
        if piece.value == NAMED_TEXT:
            speaker = self.entry.get("speaker") if self._name_speaker else None
            return f"{speaker}: {_words(self.entry)}" if speaker else _words(self.entry)
        return _words(self.entry) if piece.value == "text" else _value(self.entry, piece.value)


def _words(item: Entry) -> str:
    text = item.get("text")
    if not isinstance(text, str):
        raise UserError("lacks 'text': add it to the manifest")
    if not text.strip():
        raise UserError("the text has no tokens: give it a text or leave the utterance out")
    return text.strip()


def _value(entry: Entry, name: str) -> str:
    value = entry.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"lacks '{name}' as text: add the field, or leave the template out")
    return value.strip()
