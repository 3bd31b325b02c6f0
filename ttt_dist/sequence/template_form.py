"""The form of a template: the turns that YAML or JSON lists, read and checked, and the built-in templates.

A template is a list. `- system: TEXT`, `- user: TEXT` and `- assistant: TEXT` are turns; `- document: TEXT`, alone, is text
without turns; `- "{turns}"` stands for the turns of the entry. TEXT is a string, or one per language (`{en: ..., zh: ...}`).
In it `{name}` is filled from the entry, and `{{` and `}}` are braces.
"""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any, NamedTuple

from ttt_dist.util.errors import UserError

SYSTEM, USER, ASSISTANT, DOCUMENT = "system", "user", "assistant", "document"
CHAT_ROLES = (SYSTEM, USER, ASSISTANT)

AUDIO = "audio"
"""The entry's own recording: heard in the user's turn, spoken in the assistant's."""
TEXT_AUDIO = "text+audio"
"""The text, interleaved with the codes of the entry's own recording."""
TEXT_SPEECH = "text+speech"
"""The text, interleaved with the recording in `speech` where the entry has one."""
SEGMENTS = "segments"
"""The text of every segment, followed by its speech."""
NAMED_TEXT = "named_text"
"""The text; where `name_speaker` is set, after the speaker's name and a colon."""
TURNS = "{turns}"
"""The entry's turns, with their recordings."""
TEXT_TURNS = "{text_turns}"
"""The entry's turns, their text alone."""

SPOKEN = (TEXT_AUDIO, TEXT_SPEECH, SEGMENTS)
_FIELD = re.compile(r"[^\W\d]\w*")

TemplateItems = list[dict[str, Any] | str]
"""A template as it is written: turns, each a mapping of one role to its text, or "{turns}"."""


def built_in() -> dict[str, TemplateItems]:
    """The templates that are there without a file."""
    return {
        "asr": [{SYSTEM: "Transcribe the speech."}, {USER: "{audio}"}, {ASSISTANT: "{text+audio}"}],
        "tts": [{SYSTEM: "Speak the text."}, {USER: "{named_text}"}, {ASSISTANT: "{text+audio}"}],
        "audio_chat": [{SYSTEM: "Answer with text and speech."}, TURNS],
        "text_chat": [{SYSTEM: "Answer with text."}, TEXT_TURNS],
        "caption": [{SYSTEM: "Describe the sound."}, {USER: "{audio}"}, {ASSISTANT: "{text+speech}"}],
        "classification": [{SYSTEM: "Name the class of the sound."}, {USER: "{audio}"}, {ASSISTANT: "{label}"}],
        "text": [{DOCUMENT: "{text}"}],
        "interleaved": [{DOCUMENT: "{segments}"}],
    }


class Piece(NamedTuple):
    """A stretch of fixed text, or the name of what is filled in."""

    value: str
    is_field: bool


class Turn(NamedTuple):
    """A turn, or a document, or (`role` TURNS or TEXT_TURNS, no contents) the turns of the entry."""

    role: str
    contents: dict[str, tuple[Piece, ...]]
    """By language; a text for all languages has the key `default`."""

    def content(self, lang: object) -> tuple[Piece, ...]:
        """The pieces for an entry's `lang` (`en-US` takes `en` where it has no text), else for `default`, else the first."""
        if len(self.contents) > 1 and isinstance(lang, str):
            for name in (lang, re.split("[-_]", lang)[0]):
                if name in self.contents:
                    return self.contents[name]
        return self.contents.get("default") or next(iter(self.contents.values()))


def read_template(name: str, items: object) -> list[Turn]:
    """The turns of a template as it is written. Raises UserError naming the key."""
    where = f"templates.{name}"
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{where}: is no list of turns; write `- user: TEXT`, `- assistant: TEXT`, or `- document: TEXT`"
        )
    turns = [_read_turn(item, f"{where}[{number}]") for number, item in enumerate(items)]
    _check_order(turns, where)
    return turns


def _read_turn(item: object, where: str) -> Turn:
    if item in (TURNS, TEXT_TURNS):
        return Turn(str(item), {})
    if not isinstance(item, Mapping) or len(item) != 1:
        raise UserError(f'{where}: is {item!r}; write one turn such as `user: TEXT`, or "{TURNS}" in quotes')
    ((role, text),) = item.items()
    if role not in (*CHAT_ROLES, DOCUMENT):
        raise UserError(f"{where}: unknown role {role!r}; it is one of {', '.join((*CHAT_ROLES, DOCUMENT))}")
    texts = text if isinstance(text, Mapping) and text else {"default": text}
    return Turn(role, {str(lang): _read_text(text, role, f"{where}.{role}") for lang, text in texts.items()})


def _read_text(text: object, role: str, where: str) -> tuple[Piece, ...]:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: is {text!r}; give a text, or one per language; put it in quotes where it has braces")
    pieces: list[Piece] = []
    try:
        for literal, field, spec, conversion in Formatter().parse(text):
            if literal:
                pieces.append(Piece(literal, False))
            if field is not None:
                pieces.append(Piece(field, True))
                if spec or conversion:
                    raise ValueError("a placeholder is a name alone")
    except ValueError as error:
        raise UserError(f"{where}: cannot be read ({error}); write {{{{ and }}}} for braces in the text") from None
    for piece in pieces:
        if piece.is_field:
            _check_field(piece.value, role, where)
    return tuple(pieces)


def _check_field(name: str, role: str, where: str) -> None:
    if name in SPOKEN:
        if role not in (ASSISTANT, DOCUMENT):
            raise UserError(f"{where}: {{{name}}} is what the model speaks; put it into the assistant's turn")
    elif name == AUDIO:
        if role == SYSTEM:
            raise UserError(f"{where}: {{{name}}} has no place in a system turn; put it into the user's")
    elif not _FIELD.fullmatch(name) or "{" + name + "}" in (TURNS, TEXT_TURNS):
        hint = "it is a turn of its own" if _FIELD.fullmatch(name) else "a field's name has letters, digits and _"
        raise UserError(f"{where}: placeholder {{{name}}} has no meaning there; {hint}")


def _check_order(turns: list[Turn], where: str) -> None:
    """A document stands alone; a system turn comes first; a chat ends with the assistant, or with the entry's turns."""
    roles = [turn.role for turn in turns]
    if DOCUMENT in roles:
        if len(roles) > 1:
            raise UserError(f"{where}: has turns beside a document; use one or the other")
        return
    if SYSTEM in roles[1:]:
        raise UserError(f"{where}: has a system turn that is not the first; move or remove it")
    if sum(role in (TURNS, TEXT_TURNS) for role in roles) > 1:
        raise UserError(f"{where}: has the entry's turns twice; keep one of them")
    if roles[-1] not in (ASSISTANT, TURNS, TEXT_TURNS):
        raise UserError(
            f"{where}: ends with a {roles[-1]} turn, so there is nothing to learn; end it with the assistant's"
        )
