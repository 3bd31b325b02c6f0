"""Tasks scored by error rates: `asr` transcribes speech, `tts` speaks a text and has the judges transcribe it."""

from collections.abc import Sequence

from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.ears import listen
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.quality import measure
from ttt_dist.evaluation.metrics.scores import Record
from ttt_dist.evaluation.sound_sources import SOURCES
from ttt_dist.util.console import warn

GREEDY_TEXT = {"temperature": 0.0, "code_temperature": 0.0, "stop_at_last_span": True}
"""Of a transcript, a caption, a label: the likeliest text, and no more speech than it takes to get it."""


def asr(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """The transcript of each item's speech, greedy."""
    requests = item_errors.each(
        context.encode_audio(items, item_errors), lambda item, codes: context.request(item, item.entry, codes)
    )
    results = context.generate(requests, item_errors.done(1.0), **GREEDY_TEXT)
    return [
        item.record() | {"reference": item.entry["text"], "hypothesis": result.text, "finish": result.finish}
        for item, result in results
    ]


def tts(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """What the judges hear in each item's text as the model speaks it, and in its recording where there is one."""
    requests = item_errors.each(((item,) for item in items), lambda item: context.request(item, item.entry, []))
    done = item_errors.done(0.5 / len(context.judges) / len(SOURCES))
    said = context.synthesize_and_transcribe(context.generate(requests, item_errors.done(0.5)), item_errors, done)
    own = ItemErrors()
    originals = context.originals([item for item, _ in said], own) if context.args.ceiling else {}
    heard = {source: listen(context.judges, rows, own, done) for source, rows in originals.items()}
    for problem in own.problems:
        warn(f"{problem} (the item is scored, without a ceiling)")
    heard["speech"] = {item.id: speech.heard for item, speech in said}
    sounds = {"speech": context.spoken(said)} | originals
    measured = measure(context.quality, sounds) if context.quality else {}
    return [
        item.record()
        | {"reference": item.entry["text"], "hypothesis": speech.first}
        | {"heard": {source: heard[source][item.id] for source in SOURCES if item.id in heard.get(source, {})}}
        | ({"quality": measured[item.id]} if item.id in measured else {})
        | {"seconds": context.seconds(speech.result), "forwards": speech.result.num_forwards}
        | {"audio_forwards": speech.result.num_audio_forwards}
        | speech.record()
        for item, speech in said
    ]
