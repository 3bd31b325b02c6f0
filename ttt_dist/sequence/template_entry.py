"""What a template says of one entry of a manifest: its turns, each with the content that is written for it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from ttt_dist.errors import UserError
from ttt_dist.sequence.template_content import ContentWriter
from ttt_dist.sequence.template_form import (
    ASSISTANT,
    AUDIO,
    CHAT_ROLES,
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

Entry = Mapping[str, Any]
RECORDED = (AUDIO, *SPOKEN)


class Recordings(NamedTuple):
    """The ids of an entry's clips as bytes (`id_bytes`), by where they stand; None where a clip has not been encoded."""

    first: bytes | None
    turns: list[bytes | None]
    segments: list[bytes | None]
    speech: bytes | None


def sort_recordings(entry: Entry, audio_ids: Sequence[bytes]) -> Recordings:
    """Ids in the order of `clips(entry)`, sorted by place. Those at the end may be missing, as in a prompt."""
    left = iter(audio_ids)
    segments = entry.get("segments") or []
    if entry.get("audio") and not segments:
        next(left, None)
    turns = [next(left, None) if turn.get("audio") else None for turn in entry.get("turns") or []]
    spoken = [next(left, None) for _ in segments]
    speech = next(left, None) if entry.get("speech") else None
    return Recordings(audio_ids[0] if audio_ids else None, turns, spoken, speech)


class EntryWriter:
    """Writes one entry. Contents are made when they are asked for: a prompt needs none for the assistant's last turn."""

    def __init__(self, writer: ContentWriter, entry: Entry, codes: Sequence[np.ndarray], name_speaker: bool) -> None:
        self.writer = writer
        self.entry = entry
        self.recordings = sort_recordings(entry, [writer.audio(clip) for clip in codes])
        self.name_speaker = name_speaker

    @property
    def has_spoken_turns(self) -> bool:
        """Whether one of the entry's turns has a recording."""
        return any(turn.get("audio") for turn in self.entry.get("turns") or [])

    @cached_property
    def _interleaved(self) -> bytes:
        """The entry's text and its recording: the response of several templates."""
        return self.writer.spoken(self.writer.text(_words(self.entry)), self.recordings.first)

    def turns(self, form: Sequence[Turn]) -> list[tuple[str, Callable[[], bytes]]]:
        """(role, maker of the content) of every turn; a system turn of the entry replaces the template's."""
        found: list[tuple[str, Callable[[], bytes]]] = []
        for turn in form:
            if turn.role in (TURNS, TEXT_TURNS):
                own = self._own_turns(with_audio=turn.role == TURNS)
                if any(role == SYSTEM for role, _ in own):
                    found = [pair for pair in found if pair[0] != SYSTEM]
                found += own
            else:
                found.append((turn.role, partial(self.content, turn)))
        return found

    def content(self, turn: Turn) -> bytes:
        """Ids of a turn of the template. Text is tokenised in stretches as long as recordings leave them."""
        pieces = turn.content(self.entry.get("lang"))
        if len(pieces) == 1 and pieces[0].is_field and pieces[0].value in RECORDED:
            return self._recorded(pieces[0].value, turn.role)
        parts: list[bytes] = []
        text = ""
        for piece in pieces:
            if piece.is_field and piece.value in RECORDED:
                parts += [self.writer.encode(text if parts else text.lstrip()), self._recorded(piece.value, turn.role)]
                text = ""
            else:
                text += self._text_of(piece)
        if not parts:
            return self.writer.text(text)
        return b"".join(parts) + self.writer.encode(text.rstrip())

    def _own_turns(self, with_audio: bool) -> list[tuple[str, Callable[[], bytes]]]:
        turns = self.entry.get("turns")
        if not turns:
            raise UserError("lacks 'turns': add the turns of the chat, or leave the template out")
        for number, turn in enumerate(turns, start=1):
            if turn.get("role") not in CHAT_ROLES:
                raise UserError(
                    f"turn {number}: role is {turn.get('role')!r}, it must be one of {', '.join(CHAT_ROLES)}"
                )
        return [(turn["role"], partial(self._own_turn, index, with_audio)) for index, turn in enumerate(turns)]

    def _own_turn(self, index: int, with_audio: bool) -> bytes:
        """A turn of the entry. The user's: its recording, then its text; the assistant's: the two interleaved."""
        turn = self.entry["turns"][index]
        try:
            text_ids = self.writer.text(_words(turn)) if turn.get("text") else b""
            if not (with_audio and turn.get("audio")):
                if not text_ids:
                    raise UserError("lacks 'text': add it, or leave the entry out")
                return text_ids
            if turn["role"] == ASSISTANT:
                return self.writer.spoken(text_ids, self.recordings.turns[index])
            return self.writer.heard(self.recordings.turns[index]) + text_ids
        except UserError as error:
            raise UserError(f"turn {index + 1}: {error}") from None

    def _recorded(self, name: str, role: str) -> bytes:
        """What a placeholder for sound or speech stands for."""
        writer, recordings = self.writer, self.recordings
        if name == TEXT_AUDIO:
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
        for number, (segment, audio_ids) in enumerate(zip(segments, self.recordings.segments, strict=True), start=1):
            try:
                parts.append(self.writer.sentence(_words(segment), audio_ids, number == 1, number == len(segments)))
            except UserError as error:
                raise UserError(f"segment {number}: {error}") from None
        return b"".join(parts)

    def _text_of(self, piece: Piece) -> str:
        if not piece.is_field:
            return piece.value
        if piece.value == NAMED_TEXT:
            speaker = self.entry.get("speaker") if self.name_speaker else None
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
