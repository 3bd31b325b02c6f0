"""Values of an entry by name: its fields, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttt_dist.manifest.entry import Entry

Measure = Callable[[Entry], Any]


def spoken_text(entry: Entry) -> str | None:
    """All words of an entry: its text, or those of its segments or turns, with single spaces between them."""
    if isinstance(entry.get("text"), str):
        return str(entry["text"])
    items = entry.get("segments") or entry.get("turns") or []
    return " ".join(item["text"] for item in items if item.get("text")) or None


def _chars_per_second(entry: Entry) -> float | None:
    text, seconds = spoken_text(entry), number(entry.get("duration"))
    return len(text.strip()) / seconds if text is not None and seconds else None


def _codes_per_second(entry: Entry) -> float | None:
    codes, seconds = number(entry.get("num_codes")), number(entry.get("duration"))
    return codes / seconds if codes is not None and seconds else None


MEASURES: dict[str, Measure] = {"chars_per_second": _chars_per_second, "codes_per_second": _codes_per_second}
"""Names that stand for more than a field. Each gives None where the entry lacks what it needs."""


def measure(name: str) -> Measure:
    """What gives an entry's value by that name; None where it has none. `meta.snr` looks into the object `meta`."""
    if name in MEASURES:
        return MEASURES[name]
    first, *inner = name.split(".")
    if not inner:
        return lambda entry: entry.get(first)

    def look_inside(entry: Entry) -> Any:
        value = entry.get(first)
        for key in inner:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return look_inside


def number(value: Any) -> float | None:
    """A number, or its text, as tables of a corpus have it; None where it is none."""
    if type(value) is float or type(value) is int:
        return value
    if not isinstance(value, str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
