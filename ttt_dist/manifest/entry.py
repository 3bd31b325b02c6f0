"""One entry of a manifest: a JSON object, checked, and its paths.

An entry has `audio` (a path, or a list of paths that are joined) and `text` (what is spoken) or `label` (what it is).
In place of them it may have `turns`, a chat (`[{"role": "user", "audio": ...}, {"role": "assistant", "text": ...}]`),
or `segments`, a document of sentences (`[{"text": ..., "audio": ..., "offset": ..., "duration": ...}]`, pieces of the
entry's `audio` where they have none of their own). `speech` is the spoken form of the text. Which recordings that
makes, and in which order, says ttt_dist/manifest/clips.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from ttt_dist.util.errors import UserError

Entry = dict[str, Any]

ROLES = ("system", "user", "assistant")
MEMBER_KEYS = ({"offset", "size"}, {"row", "column"})
MAX_SECONDS = 1e8  # three years: more is no length of a recording
MAX_SILENCE = 3600.0  # seconds, in all gaps and the tail of a clip: they are made in memory
MAX_CHANNELS = 1024  # of a recording: more than libsndfile reads
MAX_NAME, MAX_PATH = 255, 4095  # bytes that Linux takes
NUMBERS = (float, int)  # and no bool
MAX_DEPTH = 100  # of lists and objects in each other

_decode = json.JSONDecoder().raw_decode
_ENDS = ("\n", "", "\r\n")
_IN_PARTS = frozenset({"turns", "segments", "speech", "member", "gaps", "tail", "label", "channel"})
_ODD_ESCAPE = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)
_SOUND = re.compile(r"\.(aac|flac|m4a|mp3|og[ag]|opus|wav|webm)$", re.IGNORECASE)


def decode_line(raw: bytes, place: str) -> str:
    """A line's text without white space around it. Raises UserError that starts with `place` where it is not UTF-8."""
    return decode(raw, place).strip()


def decode(raw: bytes, place: str) -> str:
    """A line's text. Raises UserError that starts with `place` where it is not UTF-8."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 ({error.reason}); convert the file") from error


def parse_line(raw: bytes, place: str) -> Entry:
    """One line of a manifest as it lies on the disk, checked. Raises UserError that starts with `place` (file:line)."""
    return parse_entry(decode_line(raw, place), place)


def parse_plain_line(raw: bytes) -> Entry | None:
    """The entry of one recording and its words, all in order, as nearly every line of a manifest is; None: see `parse_line`.

    One pass in place of `decode_line` and all the checks: a third of their time.
    """
    try:
        line = raw.decode()
        entry, end = _decode(line)
    except (ValueError, RecursionError):
        return None
    if type(entry) is not dict or line[end:] not in _ENDS or not _is_plain(entry):
        return None
    is_odd = "\\" in line and _ODD_ESCAPE.search(line)
    is_nested = "[" in line or line.find("{", 1) >= 0
    return None if is_odd or (is_nested and line.count("[") + line.count("{") > MAX_DEPTH) else entry


def parse_plain_lines(raws: Sequence[bytes]) -> list[Entry | None]:
    """`parse_plain_line` of each, in a quarter less time: as one list of JSON, whose keys are made once, where that is sound.

    It is where each line starts with its only brace. Then no object can go over the end of a line (behind the comma stands
    no name), no string either (it holds no control character), and as many objects as lines means one in each.
    """
    text = b",".join(raws)
    if _is_flat(text, len(raws)):
        try:
            entries = json.loads(f"[{text.decode()}]")
        except ValueError:
            entries = []
        if len(entries) == len(raws):
            return [entry if _is_plain(entry) else None for entry in entries]
    return [parse_plain_line(raw) for raw in raws]


def _is_flat(text: bytes, num_lines: int) -> bool:
    return (
        text.startswith(b"{")
        and text.count(b"{") == num_lines == text.count(b"\n,{") + 1
        and b"[" not in text
        and (b"\\" not in text or not _ODD_ESCAPE.search(text.decode("utf-8", "replace")))
    )


def _is_plain(entry: Entry) -> bool:
    """Control characters cannot stand in a string of JSON but by an escape: a path without the escape \\u0000 has no zero byte."""
    audio, text = entry.get("audio"), entry.get("text")
    seconds = entry.get("duration", 0.0)
    return bool(
        type(audio) is str
        and type(text) is str
        and audio
        and text
        and not text.isspace()
        and (len(audio) <= MAX_NAME // 4 or bad_path(audio) is None)
        and ((type(seconds) is float and 0.0 <= seconds <= MAX_SECONDS) or is_seconds(seconds))
        and ("offset" not in entry or is_seconds(entry["offset"]))
        and _IN_PARTS.isdisjoint(entry)
    )


def parse_entry(line: str, place: str) -> Entry:
    """One line of a manifest, checked. Raises UserError that starts with `place` (file:line) and names the field."""
    entry = parse_object(line, place)
    if not entry.get("turns") and not entry.get("segments") and not entry.get("audio"):
        theirs = next((key for key, value in entry.items() if isinstance(value, str) and _SOUND.search(value)), None)
        listed = f"give the path of the recording ({theirs!r} has one: `data_prep manifest --reader table` lists such a file)"
        remedy = "give the path of the recording" if theirs is None else listed
        raise UserError(f"{place}: field 'audio' is missing or empty; {remedy}")
    check_recordings(entry, place)
    _check_words(entry, place)
    return entry


def check_recordings(entry: Entry, place: str) -> None:
    """Whatever recordings, turns and segments an entry names, and be it none. Raises UserError that starts with `place`."""
    _check_clip(entry, place, "")
    for name, check in (("turns", _check_turn), ("segments", _check_segment)):
        for index, item in enumerate(_items(entry, name, place)):
            check(item, entry, place, f"{name}[{index}]")
    speech = entry.get("speech")
    if speech is not None:
        if not isinstance(speech, dict) or not speech.get("audio"):
            raise UserError(f"{place}: field 'speech' is no object with an 'audio'; correct or remove it")
        _check_clip(speech, place, "speech.")


def parse_object(line: str, place: str) -> Entry:
    """One JSON object. Raises UserError that starts with `place` where the line is anything else."""
    try:
        entry, end = _decode(line)  # json.loads searches for white space at both ends
        if end != len(line):
            entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON ({error}); write one JSON object per line") from error
    if not isinstance(entry, dict):
        raise UserError(f"{place}: is {type(entry).__name__}, not an object; write one JSON object per line")
    if line.count("[") + line.count("{") > MAX_DEPTH and is_deep(entry):
        raise UserError(f"{place}: lists and objects stand in each other more than {MAX_DEPTH} deep; flatten the line")
    if "\\u" in line and not is_unicode(json.dumps(entry, ensure_ascii=False)):
        raise UserError(f"{place}: an escape \\uD800 to \\uDFFF stands alone, which is no character; remove it")
    return entry


def is_deep(value: Any) -> bool:
    """Whether a value read from JSON is nested so deeply that it may not be written again."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level for inner in _inside(item) if isinstance(inner, list | dict)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: a decoder that let bad bytes through marks them by lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_words(entry: Entry, place: str) -> None:
    """`text`, or what may stand in its place."""
    text = entry.get("text")
    label = entry.get("label")
    if label is not None and (not isinstance(label, str) or not label.strip()):
        raise UserError(f"{place}: field 'label' is empty or no string; give the label, or remove the field")
    if text is None and (label or entry.get("turns") or entry.get("segments")):
        return
    if not isinstance(text, str):
        raise UserError(f"{place}: field 'text' is missing or no string; give the words that are spoken")
    if not text.strip():
        raise UserError(f"{place}: field 'text' is empty; give the words that are spoken, or remove the line")


def _items(entry: Entry, name: str, place: str) -> list[Entry]:
    items = entry.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{place}: field '{name}' is no list of objects, or empty; correct or remove it")
    return items


def _check_turn(turn: Entry, entry: Entry, place: str, name: str) -> None:
    if turn.get("role") not in ROLES:
        raise UserError(f"{place}: field '{name}.role' is {turn.get('role')!r}; give one of {', '.join(ROLES)}")
    _check_text(turn, place, name)
    if not turn.get("text") and not turn.get("audio"):
        raise UserError(f"{place}: field '{name}' has neither text nor audio; give one, or remove the turn")
    _check_clip(turn, place, f"{name}.")


def _check_segment(segment: Entry, entry: Entry, place: str, name: str) -> None:
    _check_text(segment, place, name)
    if not segment.get("text"):
        raise UserError(f"{place}: field '{name}.text' is missing or empty; give the words that are spoken")
    if not segment.get("audio"):
        if not isinstance(entry.get("audio"), str):
            raise UserError(f"{place}: field '{name}.audio' is missing, and the entry has no recording; give its path")
        if segment.get("offset") is None:
            raise UserError(f"{place}: field '{name}.offset' is missing; give the second at which the segment begins")
    _check_clip(segment, place, f"{name}.")


def _check_text(item: Entry, place: str, name: str) -> None:
    text = item.get("text")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise UserError(f"{place}: field '{name}.text' is empty or no string; give the words, or remove it")


def _check_clip(clip: Entry, place: str, prefix: str) -> None:
    """The fields that say which sound a clip is; `prefix` is where the clip stands in its entry."""
    audio = clip.get("audio")
    if audio and not isinstance(audio, str) and not _is_list_of(audio, str):
        raise UserError(f"{place}: field '{prefix}audio' is neither a path nor a list of paths; correct it")
    for path in (audio,) if isinstance(audio, str) else audio or ():
        if reason := bad_path(path):
            raise UserError(f"{place}: field '{prefix}audio' {reason}; correct the path")
    for name in ("offset", "duration", "tail"):
        value = clip.get(name)
        if value is not None and not is_seconds(value):
            raise UserError(f"{place}: field '{prefix}{name}' is {value!r}; give seconds, 0 or more")
    if clip.get("tail"):
        _check_silence(clip["tail"], place, f"{prefix}tail")
    channel = clip.get("channel")
    if channel is not None and (type(channel) is not int or not 0 <= channel < MAX_CHANNELS):
        raise UserError(f"{place}: field '{prefix}channel' is {channel!r}; give its number, 0 for the left one")
    _check_gaps(clip, place, prefix)
    _check_member(clip, place, prefix)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(part, kind) for part in value)


def bad_path(path: str) -> str | None:
    """Why no file can have this name, whatever lies on the disk; None where one can."""
    if "\0" in path:
        return "holds a zero byte"
    if len(path) <= (MAX_NAME if path.isascii() else MAX_NAME // 4):  # at a glance: a character has at most four bytes
        return None
    raw = path.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_PATH or any(len(name) > MAX_NAME for name in raw.split(b"/")):
        return f"is too long for the name of a file ({len(raw):,} bytes)"
    return None


def is_seconds(value: Any) -> TypeGuard[float]:
    """Whether a value can be the place or length of a piece of sound."""
    return type(value) in NUMBERS and 0 <= value <= MAX_SECONDS


def seconds_of(value: Any) -> float | None:
    """A number or its text as seconds; None where it is none."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if is_seconds(seconds) else None


def _check_gaps(clip: Entry, place: str, prefix: str) -> None:
    gaps = clip.get("gaps")
    if gaps is None:
        return
    parts = clip.get("audio")
    if not isinstance(parts, list) or not isinstance(gaps, list) or len(gaps) != len(parts):
        raise UserError(f"{place}: field '{prefix}gaps' does not have one number per path of 'audio'; correct it")
    if not all(is_seconds(gap) for gap in gaps):
        raise UserError(f"{place}: field '{prefix}gaps' holds something other than seconds of 0 or more; correct it")
    _check_silence(sum(gaps), place, f"{prefix}gaps")


def _check_silence(seconds: float, place: str, name: str) -> None:
    if seconds > MAX_SILENCE:
        raise UserError(
            f"{place}: field '{name}' asks for {seconds:.6g} s of silence, {MAX_SILENCE:g} at most; correct it"
        )


def _check_member(clip: Entry, place: str, prefix: str) -> None:
    member = clip.get("member")
    if member is None:
        return
    if not isinstance(clip.get("audio"), str):
        raise UserError(f"{place}: field '{prefix}member' stands without the path of one container; correct 'audio'")
    if not isinstance(member, dict) or set(member) not in MEMBER_KEYS:
        raise UserError(
            f"{place}: field '{prefix}member' is {member!r}; give offset and size in bytes, or row and column"
        )
    numbers = [value for name, value in member.items() if name != "column"]
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in numbers):
        raise UserError(f"{place}: field '{prefix}member' holds something other than whole numbers of 0 or more")
    if not isinstance(member.get("column", ""), str):
        raise UserError(f"{place}: field '{prefix}member.column' is no string; give the column's name")


def with_paths(entry: Entry, rename: Callable[[str], str]) -> Entry:
    """The entry with every path of its recordings replaced by `rename(path)`; what has no path stays as it is."""
    moved = {**entry, **_renamed(entry, rename)}
    for name in ("turns", "segments"):
        if entry.get(name):
            moved[name] = [{**item, **_renamed(item, rename)} for item in entry[name]]
    if entry.get("speech"):
        moved["speech"] = {**entry["speech"], **_renamed(entry["speech"], rename)}
    return moved


def _renamed(clip: Mapping[str, Any], rename: Callable[[str], str]) -> Entry:
    audio = clip.get("audio")
    if not audio:
        return {}
    return {"audio": rename(audio) if isinstance(audio, str) else [rename(part) for part in audio]}
