"""What judges hear: in the model's speech, and, as the ceiling, in recordings and in these through the codec and back.

A figure of generated speech says little without its ceiling: a recogniser errs on recordings too, and speech made of a codec's
codes can hardly be clearer than a recording that went through it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.judge import Judge
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.evaluation.metrics.breakdown import transcripts
from ttt_dist.evaluation.metrics.quality import score_quality
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, Scored, error_rates
from ttt_dist.evaluation.sound_sources import SOURCES, Sound
from ttt_dist.util.errors import UserError

Heard = dict[str, str]
"""What each judge hears in a sound, by the judge's label."""

MOST = 2.0
"""Words of a transcript that count, per word of the reference: recognisers may repeat themselves without end."""

CUT = f"a transcript counts up to {MOST:g} words per word of the reference"

EARS_NOTE = (
    "Words wrong as each judge hears them. Recordings, and these through the codec and back, are the ceiling: what is wrong "
    "there is the judge's fault, or the codec's. A model understands its own speech better than others do."
)


def listen(
    judges: Mapping[str, Judge], rows: Sequence[tuple[Item, Sound]], item_errors: ItemErrors, done: Callable[[], None]
) -> dict[str, Heard]:
    """By the item's id. An item that one of the judges cannot hear is noted and left out."""
    heard: dict[str, Heard] = {item.id: {} for item, _ in rows}
    for label, judge in judges.items():
        left = [(item, sound) for item, sound in rows if item.id in heard]
        heard = {
            name: heard[name] | {label: text} for name, text in _transcribe(judge, left, item_errors, done).items()
        }
    return heard


def _transcribe(
    judge: Judge, rows: Sequence[tuple[Item, Sound]], item_errors: ItemErrors, done: Callable[[], None]
) -> dict[str, str]:
    """What the judge hears in each, by the item's id. Where it fails, each is tried alone."""

    def hear(rows: Sequence[tuple[Item, Sound]]) -> list[str]:
        waves = [sound(judge.sample_rate) for _, sound in rows]
        return judge.transcribe(waves, [item.lang for item, _ in rows], done)

    try:
        return {item.id: text for (item, _), text in zip(rows, hear(rows), strict=True)}
    except UserError:
        return {item.id: text for item, text in item_errors.each(rows, lambda *row: hear([row])[0])}


def score_speech(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """Error rates of own speech by the first judge; in the details those of each judge beside its ceiling, and the forwards
    that a second of sound took.
    """
    own = transcripts(records, normalisers, MOST)
    judges = list(dict.fromkeys(label for record in records for label in record["heard"]["speech"]))
    by_judge = {label: _by_source(records, normalisers, label) for label in judges}
    quality = score_quality(records)
    forwards = {
        "forwards_per_second": _per_second(records, "audio_forwards"),
        "all_forwards_per_second": _per_second(records, "forwards"),
    }
    more = forwards | {"cut": CUT, "judges": by_judge} | ({"quality": quality} if quality else {})
    return Scored(own.records, own.figures, own.details | more)


def _per_second(records: Sequence[Record], forwards: str) -> float | None:
    """Forwards of that name over the seconds of sound; None without sound, and of records that an older build wrote."""
    seconds = sum(record["seconds"] for record in records)
    is_known = seconds and all(forwards in record for record in records)
    return round(sum(record[forwards] for record in records) / seconds, 4) if is_known else None


def _by_source(records: Sequence[Record], normalisers: Normalisers, label: str) -> dict[str, Any]:
    """The judge's WER of each source that was heard, as `Figure.to_dict`; and how many transcripts of speech are cut."""
    rates: dict[str, Any] = {}
    for source in SOURCES:
        heard = [
            record | {"hypothesis": record["heard"][source][label]} for record in records if source in record["heard"]
        ]
        rates |= {source: error_rates(heard, normalisers, MOST).figures["wer"].to_dict()} if heard else {}
        if source == "speech":
            num_cut = sum(_is_cut(record, normalisers) for record in heard)
    return rates | {"num_cut": num_cut}


def _is_cut(record: Record, normalisers: Normalisers) -> bool:
    normaliser = normalisers.of(record)
    return len(normaliser.words(record["hypothesis"])) > MOST * len(normaliser.words(record["reference"]))


def by_judge(summary: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row per judge: whose ears, then WER in per cent of each source; empty where no judge heard speech."""
    rows = [
        [called(label, judge["judge"]), *(_cell(judge.get(source)) for source in SOURCES), str(judge["num_cut"])]
        for label, judge in summary.get("judges", {}).items()
        if "speech" in judge
    ]
    return [["heard by", *(f"{name}, WER %" for name in SOURCES.values()), "transcripts cut"], *rows] if rows else []


def called(label: str, name: str) -> str:
    """The judge's name; the model's own ears marked as what they are."""
    return f"{name} (its own ears)" if label == OWN else name


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "none"
    low, high = (f"{100 * bound:.1f}" for bound in score["interval_95"]) if score["interval_95"] else ("", "")
    return f"{100 * score['value']:.1f}" + (f" ({low} to {high})" if low else "")
