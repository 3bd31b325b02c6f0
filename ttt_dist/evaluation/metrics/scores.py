"""Scores of a task as its summary shows them, made of records alone; and what several tasks count in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ttt_dist.evaluation.metrics.error_rates import Score
from ttt_dist.evaluation.metrics.intervals import Interval, confidence_interval, ratio, wilson_interval
from ttt_dist.evaluation.metrics.normalise import (
    BY_LANGUAGE,
    NORMALISERS,
    Normaliser,
    normaliser,
    own_normaliser,
    scored_language,
)

Record = dict[str, Any]
BY_WRITING = "by its writing"
"""Beside the name of a normaliser that no `lang` asks for."""


@dataclass(frozen=True)
class Figure:
    """One score."""

    value: float | None
    interval: Interval | None
    by: str
    """What it was made with: the normaliser, the tokenizer."""
    num_items: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": None if self.value is None else round(self.value, 6),
            "interval_95": self.interval and list(self.interval),
            "by": self.by,
            "items": self.num_items,
        }


@dataclass
class Scored:
    """What a task makes of its records."""

    records: list[Record]
    """The same, each with its own scores."""
    figures: dict[str, Figure]
    details: Record = field(default_factory=dict)
    """What else belongs into the summary."""


@dataclass(frozen=True)
class Normalisers:
    """The normaliser of a record: the one that was asked for, else its language's."""

    asked: str | None = None
    folder: Path | None = None
    """Where Whisper's spelling table may be."""

    def of(self, record: Record) -> Normaliser:
        if self.asked in BY_LANGUAGE:
            lang = scored_language(record.get("lang"), _wanted(record))
            return normaliser(BY_LANGUAGE[self.asked](lang), self.folder)
        if self.asked is not None:
            is_own = self.asked.partition(":")[0] not in NORMALISERS
            return own_normaliser(self.asked) if is_own else normaliser(self.asked, self.folder)
        lang = record.get("lang")
        scored = scored_language(lang, _wanted(record))
        found = normaliser(scored, self.folder)
        return found if scored == lang else replace(found, name=f"{found.name} ({BY_WRITING})")

    def names(self, records: Sequence[Record]) -> str:
        """Of all that these records take."""
        return " + ".join(sorted({self.of(record).name for record in records}))


def _wanted(record: Record) -> list[str]:
    """The texts that a record is scored against."""
    values = (record.get(name) for name in ("reference", "captions", "answers", "label"))
    texts = (value if isinstance(value, list) else [value] for value in values if isinstance(value, str | list))
    return [text for some in texts for text in some if isinstance(text, str)]


def error_rates(records: Sequence[Record], normalisers: Normalisers, most: float | None = None) -> Scored:
    """WER and CER of `hypothesis` against `reference`, and the counts that they are made of; `most` as `Score.of`."""
    scores = [Score.of(record["reference"], record["hypothesis"], normalisers.of(record), most) for record in records]
    total = sum(scores, Score())
    figures = {}
    for name, unit in (("wer", "words"), ("cer", "characters")):
        parts = [getattr(score, unit) for score in scores]
        interval = confidence_interval(ratio, ids(records), [(part.edits, part.length) for part in parts])
        figures[name] = Figure(getattr(total, unit).rate, interval, normalisers.names(records), len(records))
    scored = [record | score.to_dict() for record, score in zip(records, scores, strict=True)]
    counts = {unit: total.to_dict()[unit] for unit in ("words", "characters")}
    return Scored(scored, figures, counts | {"normaliser": normalisers.names(records)})


def accuracy(is_right: Sequence[bool], by: str) -> Figure:
    """The share of items that are right."""
    num_right, num_items = sum(is_right), len(is_right)
    return Figure(num_right / num_items if num_items else None, wilson_interval(num_right, num_items), by, num_items)


def mean(records: Sequence[Record], values: Sequence[float], by: str) -> Figure:
    """The mean of a score of items."""
    interval = confidence_interval(ratio, ids(records), [(value, 1) for value in values])
    return Figure(sum(values) / len(values) if values else None, interval, by, len(values))


def ids(records: Sequence[Record]) -> list[str]:
    return [record["id"] for record in records]


def wavs(record: Record) -> list[str]:
    """The files of speech that a record names, below the results: its own, or those of a chat's answers."""
    answers = [answer for answer in record.get("answers", []) if isinstance(answer, dict)]
    return [part["wav"] for part in (record, *answers) if part.get("wav")]
