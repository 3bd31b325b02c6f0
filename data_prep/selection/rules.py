"""Rules that keep an entry or leave it out: bounds, values, an expression, what came before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from data_prep.selection.expressions import FLAG, parse_expression
from data_prep.selection.measures import Measure, measure, number, spoken_text
from ttt_dist.manifest.clips import Clip, clips
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.reading import SeenIds

Rule = Callable[[Entry], str | None]
"""Why an entry is left out, in words by which the report counts it; None where it is kept."""

AUDIO_HASHES = ("audio_sha256", "sha256", "audio_md5", "md5", "audio_hash")
"""Fields by which corpora give the checksum of a recording; the first that an entry has counts."""
_MORE = frozenset({"segments", "turns", "speech", *AUDIO_HASHES})


def bounds(low: Mapping[str, float], high: Mapping[str, float]) -> list[Rule]:
    """A rule per field that has a lowest or highest value; an entry without a number there is left out."""
    return [_bound(name, low.get(name, -math.inf), high.get(name, math.inf)) for name in dict.fromkeys([*low, *high])]


def _bound(name: str, low: float, high: float) -> Rule:
    value_of = measure(name)
    lacks, below, above = f"no number '{name}'", f"{name} below {low:g}", f"{name} above {high:g}"

    def rule(entry: Entry) -> str | None:
        value = value_of(entry)
        if type(value) is not float:
            value = number(value)
        if value is not None and low <= value <= high:
            return None
        return lacks if value is None or value != value else below if value < low else above

    return rule


def is_among(name: str, values: Sequence[str]) -> Rule:
    """The field `name` has one of `values`."""
    wanted, value_of, reason = frozenset(values), measure(name), f"{name} not wanted"

    def rule(entry: Entry) -> str | None:
        value = value_of(entry)
        return None if value is not None and str(value) in wanted else reason

    return rule


def holds(expression: str) -> Rule:
    """An expression is true. Raises UserError where it is none."""
    function, reason = parse_expression(expression), f"not {FLAG} {expression}"
    return lambda entry: None if function(entry) else reason


class IsNew:
    """No entry that was asked before has the same `text`, `audio`, or value of a field; one that has none is kept.

    Not a rule by itself: it remembers, and looks many entries up at once.
    """

    def __init__(self, name: str) -> None:
        self.reason = f"{name} came before"
        self._seen, self._key_of = SeenIds(), KEYS.get(name) or measure(name)

    def among(self, entries: Sequence[Entry]) -> list[bool]:
        """Which of the entries are new, each after those before it."""
        keys = [self._key_of(entry) for entry in entries]
        found = iter(self._seen.add_all([str(key) for key in keys if key is not None]))
        return [key is None or next(found) for key in keys]


def _text_key(entry: Entry) -> str | None:
    """Texts that differ in case and white space alone are the same."""
    text = spoken_text(entry)
    if text is None:
        return None
    folded = text.casefold()
    # The only white space that is printable is a space: most texts need not be taken apart.
    is_single_spaced = folded.isprintable() and "  " not in folded and folded[:1] != " " != folded[-1:]
    return folded if is_single_spaced else " ".join(folded.split())


def _audio_key(entry: Entry) -> str | None:
    """Where the sound lies: the checksum, else the path, and the place in it, of all recordings of an entry."""
    if _MORE.isdisjoint(entry):  # as nearly all: what stands below, at a third of its time
        return f"[[{entry['audio']!r}, {entry.get('member')}, {entry.get('offset')}, {entry.get('channel')}]]"
    found = clips(entry)
    return str([_clip_key(clip) for clip in found]) if found else None


def _clip_key(clip: Clip) -> list[object]:
    checksum = next((clip[name] for name in AUDIO_HASHES if clip.get(name)), None)
    where = [checksum] if checksum else [clip["audio"], clip.get("member")]
    return [*where, clip.get("offset"), clip.get("channel")]


KEYS: dict[str, Measure] = {"text": _text_key, "audio": _audio_key}
"""By what two entries are told to be the same, where that is more than the value of a field."""
