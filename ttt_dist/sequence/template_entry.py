"""What a template says of one entry of a manifest: its turns, each with the content that is written for it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ttt_dist.sequence.template_content import Codes, ContentWriter
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
from ttt_dist.util.errors import UserError

Entry = Mapping[str, Any]
RECORDED = (AUDIO, *SPOKEN)
MOST_LANGUAGES = 256


class Recordings(NamedTuple):
    """The ids of an entry's clips as bytes (`id_bytes`), by where they stand; None where a clip has not been encoded."""

    first: bytes | None
    turns: Sequence[bytes | None] = ()
    segments: Sequence[bytes | None] = ()
    speech: bytes | None = None


def sort_recordings(entry: Entry, audio_ids: Sequence[bytes]) -> Recordings:
    """Ids in the order of `clips(entry)`, sorted by place. Those at the end may be missing, as in a prompt."""
    first = audio_ids[0] if audio_ids else None
    turns, segments, speech = entry.get("turns"), entry.get("segments"), entry.get("speech")
    if not (turns or segments or speech):  # most entries: worth a line
        return Recordings(first)
    left = iter(audio_ids)
    if entry.get("audio") and not segments:
        next(left, None)
    of_turns = [next(left, None) if turn.get("audio") else None for turn in turns or ()]
    spoken = [next(left, None) for _ in segments or ()]
    return Recordings(first, of_turns, spoken, next(left, None) if speech else None)


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
                self._interleaved = writer.spoken(writer.text(_words(self.entry)), recordings.first)
            return self._interleaved
        if name == TEXT_SPEECH:
            text_ids = writer.text(_words(self.entry))
            return writer.spoken(text_ids, recordings.speech) if self.entry.get("speech") else text_ids
        if name == SEGMENTS:
            return self._segments()
        if role == "user":
            return writer.heard(recordings.first)
        return writer.spoken(b"", recordings.first)

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
