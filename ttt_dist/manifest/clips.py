"""The recordings that an entry of a manifest names, in the order in which their codes are stored.

An entry has one recording (`audio`), or several: those of its `turns` (a chat) or `segments` (a document of sentences), and
`speech`, the spoken form of its text where that is not what `audio` holds (a caption read aloud).
"""

from collections.abc import Mapping
from typing import Any

Clip = Mapping[str, Any]
"""What UtteranceReader.read takes: `audio`, and where they apply `member`, `offset`, `duration`, `gaps`, `tail`, `channel`."""

PLACE = ("audio", "member")
"""What a segment without an `audio` of its own takes from its entry: the long recording that it is a piece of; and `channel`,
where it names none itself."""


def clips(entry: Mapping[str, Any]) -> list[Clip]:
    """The clips of an entry, in order; none where it is text alone."""
    found: list[Clip] = []
    segments = entry.get("segments") or []
    if entry.get("audio") and not segments:
        found.append(entry)
    place = {name: entry[name] for name in PLACE if name in entry}
    channel = {"channel": entry["channel"]} if "channel" in entry else {}
    found += [turn for turn in entry.get("turns") or [] if turn.get("audio")]
    found += [segment if segment.get("audio") else {**channel, **segment, **place} for segment in segments]
    if entry.get("speech"):
        found.append(entry["speech"])
    return found
