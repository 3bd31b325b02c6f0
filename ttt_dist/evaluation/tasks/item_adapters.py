"""The fields of published benchmarks under the project's names, and what each task needs of an entry."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from ttt_dist.manifest.entry import Entry
from ttt_dist.util.errors import UserError

AUDIO = ("audio", "audio_filename", "source_wav", "file_name")
QUESTION = ("text", "question", "Question", "Questions", "instruction", "prompt", "utterance", "source_text")
ANSWERS = (
    "answers", "answer", "Answer", "answer_normalized_value", "answer_normalized_aliases", "reference", "target_text",
    "targetValue",
)  # fmt: skip
ALIASES = ("value", "Value", "aliases", "Aliases", "normalized_aliases", "NormalizedAliases")
CAPTIONS = ("captions", "references", "caption", "text", *(f"caption_{number}" for number in range(1, 6)))

PLACE = ("member", "offset", "duration", "gaps", "tail", "channel")  # what else says which sound a clip is
SEPARATORS = {"answers": ";", "answer_normalized_aliases": ","}  # in cells of OpenAudioBench's tables

_DESCRIPTION = re.compile(r'\(description (?:"([^"]*)"|([^()]*))\)')  # WebQuestions: (list (description "John Smith"))


def transcript(entry: Entry) -> Entry:
    """asr: speech and its words, and be it none."""
    if not isinstance(entry.get("text"), str):
        raise UserError("lacks 'text'; add the reference text, or remove the line")
    return _recorded(entry)


def spoken_text(entry: Entry) -> Entry:
    """tts: words to be spoken."""
    return entry | {"text": _text(entry, ("text",))}


def question(entry: Entry) -> Entry:
    """audio_qa: a question as speech (else as text) and its accepted answers, none of which may be known."""
    answers = [answer for name in ANSWERS if name in entry for answer in _strings(entry[name], SEPARATORS.get(name))]
    return chat(entry) | {"answers": list(dict.fromkeys(answers))}


def captions(entry: Entry) -> Entry:
    """caption: a sound, and what several people wrote of it."""
    texts = [text for name in CAPTIONS if name in entry for text in _strings(entry[name])]
    if not texts:
        raise UserError("lacks 'captions'; add the reference captions, or remove the line")
    return _recorded(entry) | {"captions": texts}


def labelled(entry: Entry) -> Entry:
    """classification: a sound and its class."""
    return _recorded(entry) | {"label": _text(entry, ("label",))}


def chat(entry: Entry) -> Entry:
    """speech_chat: the user's turns; those of the assistant are kept as references only.

    A manifest's `turns`, the `dialogue` of URO-Bench's multi-round sets, or a single question.
    """
    if isinstance(entry.get("dialogue"), list):
        turns = [_turn(turn) for turn in entry["dialogue"] if isinstance(turn, dict)]
    elif entry.get("turns") is not None:
        turns = entry["turns"]
    else:
        turns = [_turn(entry)]
    if not isinstance(turns, list) or not any(isinstance(turn, dict) and turn.get("role") == "user" for turn in turns):
        raise UserError("has no turn of the user; add one, or remove the line")
    return {name: value for name, value in entry.items() if name not in (*AUDIO, *PLACE)} | {"turns": turns}


def whole_entry(entry: Entry) -> Entry:
    """likelihood: whatever its template writes; what that lacks shows when it is rendered."""
    return entry


def _turn(source: Entry) -> Entry:
    """A question as a turn: its recording where it has one, else its words."""
    place = {name: source[name] for name in PLACE if name in source}
    audio = _first(source, AUDIO)
    return {"role": "user", "audio": audio, **place} if audio else {"role": "user", "text": _text(source, QUESTION)}


def question_text(entry: Entry) -> str:
    """The words of a question, where the data has them."""
    return str(_first(entry, QUESTION) or "")


def _recorded(entry: Entry) -> Entry:
    audio = _first(entry, AUDIO)
    if not audio:
        raise UserError("lacks 'audio'; name the file, or remove the line")
    return entry | {"audio": audio}


def _text(entry: Entry, names: Sequence[str]) -> str:
    found = _first(entry, names)
    if not isinstance(found, str):
        raise UserError(f"lacks '{names[0]}'; add it, or remove the line")
    if not found.strip():
        raise UserError(f"'{names[0]}' is empty: no prompt can be made of it; add words, or remove the line")
    return found


def _first(entry: Entry, names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _strings(value: Any, separator: str | None = None) -> list[str]:
    """The texts of a value as benchmarks write several: a list, an object with aliases, or a list in a string."""
    if isinstance(value, list):
        return [text for part in value for text in _strings(part)]
    if isinstance(value, dict):
        return [text for name in ALIASES if name in value for text in _strings(value[name])]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return []
    text = str(value).strip()
    if text.startswith("(list ("):
        return [quoted or plain for quoted, plain in _DESCRIPTION.findall(text)]
    if text.startswith("[") and text.endswith("]"):
        return _strings(_literal(text) or text[1:-1])
    return [part.strip() for part in (text.split(separator) if separator else [text]) if part.strip()]


def _literal(text: str) -> Any:
    """The list that a cell of a table holds as JSON, or as Python writes it; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
