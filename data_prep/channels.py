"""`manifest --channel`: of recordings with several channels one, or each as a speaker's turn, where the default is their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

SIDES = {"left": 0, "right": 1}
CHOICES = {"mix": (), "left": ("left",), "right": ("right",), "each": ("left", "right")}
"""Of --channel, which channels that means."""
ROLES = ("user", "assistant")
OF_A_CLIP = ("audio", "member", "offset", "duration")
_ELSEWHERE = ("turns", "segments", "speech")


def with_channels(entries: Iterable[Entry], sides: Sequence[str], problems: Problems) -> Iterator[Entry]:
    """The entries with the channels of `sides` named; one that has no such channel, or is not one recording, is reported.

    One that names a channel already is as its corpus has it.
    """
    if not sides:
        yield from entries
        return
    count = _counter()
    for entry in entries:
        try:
            yield entry if "channel" in entry else _chosen(entry, sides, count)
        except UserError as error:
            problems.report(f"{entry['id']}: {error}", "no such channel")


def _counter() -> Callable[[Entry], int]:
    """What counts the channels of an entry's recording, by its header."""
    from ttt_dist.audio.containers import Containers  # torch takes seconds: --help need not wait for it
    from ttt_dist.audio.io import num_channels

    containers = Containers()

    def count(entry: Entry) -> int:
        if entry.get("member") is None:
            return num_channels(entry["audio"])
        return num_channels(*containers.named(Path(entry["audio"]), entry["member"]))

    return count


def _chosen(entry: Entry, sides: Sequence[str], count: Callable[[Entry], int]) -> Entry:
    if any(entry.get(name) for name in _ELSEWHERE) or not isinstance(entry["audio"], str):
        raise UserError("is not one recording, of which --channel could take one channel; name channels in the entry")
    found = count(entry)
    for side in sides:
        if SIDES[side] >= found:
            raise UserError(f"{entry['audio']}: has {found} channel, no {side} one; list it with --channel mix")
    return {**entry, "channel": SIDES[sides[0]]} if len(sides) == 1 else _conversation(entry, sides)


def _conversation(entry: Entry, sides: Sequence[str]) -> Entry:
    """A chat of as many turns as channels, each of them whole: who is silent while the other speaks is silent in it, too."""
    clip = {name: entry[name] for name in OF_A_CLIP if name in entry}
    speaker = entry.get("speaker") or entry["id"]
    turns = [
        {"role": role, **clip, "channel": SIDES[side], "speaker": f"{speaker}-{side}"}
        for role, side in zip(ROLES, sides, strict=True)
    ]
    shared = {name: value for name, value in entry.items() if name not in ("audio", "member", "offset")}
    return {**shared, "turns": turns}
