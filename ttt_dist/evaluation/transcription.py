"""Tasks scored by error rates: `asr` transcribes speech, `tts` speaks a text and has the judge transcribe it."""

from collections.abc import Sequence

from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.scores import Record
from ttt_dist.evaluation.tools import Notes, Tools

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
    """The judge's transcript of each item's text as the model speaks it."""
    requests = notes.each(((item,) for item in items), lambda item: tools.request(item, item.entry, []))
    said = tools.say(tools.answer(requests, notes.done(0.5)), notes, notes.done(0.5))
    return [
        item.record() | {"reference": item.entry["text"], "hypothesis": speech.heard} | speech.record()
        for item, speech in said
    ]
