"""Tasks scored by error rates: `asr` transcribes speech, `tts` speaks a text and has the judges transcribe it."""

from collections.abc import Callable, Sequence

from ttt_dist.evaluation.ears import SOURCES, Heard, listen
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.scores import Record
from ttt_dist.evaluation.tools import Notes, Tools
from ttt_dist.telemetry.console import warn

GREEDY_TEXT = {"temperature": 0.0, "code_temperature": 0.0, "stop_at_last_span": True}
"""Of a transcript, a caption, a label: the likeliest text, and no more speech than it takes to get it."""


def asr(tools: Tools, items: Sequence[Item], notes: Notes) -> list[Record]:
    """The transcript of each item's speech, greedy."""
    requests = notes.each(tools.hear(items, notes), lambda item, codes: tools.request(item, item.entry, codes))
    results = tools.answer(requests, notes.done(1.0), **GREEDY_TEXT)
    return [
        item.record() | {"reference": item.entry["text"], "hypothesis": result.text, "finish": result.finish}
        for item, result in results
    ]


def tts(tools: Tools, items: Sequence[Item], notes: Notes) -> list[Record]:
    """What the judges hear in each item's text as the model speaks it, and in its recording where there is one."""
    requests = notes.each(((item,) for item in items), lambda item: tools.request(item, item.entry, []))
    done = notes.done(0.5 / len(tools.judges) / len(SOURCES))
    said = tools.say(tools.answer(requests, notes.done(0.5)), notes, done)
    heard = _originals(tools, [item for item, _ in said], done)
    return [
        item.record()
        | {
            "reference": item.entry["text"],
            "hypothesis": speech.first,
            "heard": {"speech": speech.heard} | heard[item.id],
        }
        | speech.record()
        for item, speech in said
    ]


def _originals(tools: Tools, items: Sequence[Item], done: Callable[[], None]) -> dict[str, dict[str, Heard]]:
    """By the item's id, what the judges hear in its recording, and in that through the codec and back."""
    heard: dict[str, dict[str, Heard]] = {item.id: {} for item in items}
    notes = Notes()
    for source, rows in tools.originals(items, notes).items():
        for name, texts in listen(tools.judges, rows, notes, done).items():
            heard[name][source] = texts
    for problem in notes.problems:
        warn(f"{problem} (the item is scored, without a ceiling)")
    return heard
