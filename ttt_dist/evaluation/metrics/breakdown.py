"""Where the errors of transcripts are: by speaker, language and length; which words they are. As sclite's reports have them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jiwer

from ttt_dist.evaluation.metrics.error_rates import Score, compared
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, Scored, error_rates

WORDS = (5, 10, 20, 40)  # of the reference: the last of each bucket
SECONDS = (2, 5, 10, 20, 30)  # of the recording: below which each bucket ends
KINDS = {"substitute": "substitutions", "delete": "deletions", "insert": "insertions"}
"""Of errors, by jiwer's names."""
NOT_GIVEN = "(not given)"
"""Where the data does not say: rows of a table add up to all items."""
TOP = 50  # confusions of a kind that a summary names


def transcripts(records: Sequence[Record], normalisers: Normalisers, most: float | None = None) -> Scored:
    """`error_rates`, and in the details where the errors are (`breakdown`, `confusions`)."""
    scored = error_rates(records, normalisers, most)
    where = {"breakdown": breakdown(scored.records), "confusions": confusions(records, normalisers, most)}
    return Scored(scored.records, scored.figures, scored.details | where)


def breakdown(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Of scored records the rates by `speaker` and `lang` (where there are several), `words` and `seconds`.

    Rows are `name`, `items` and `Score.to_dict`; speakers and languages with most errors first, lengths in their order.
    """
    found = {name: _by_value(records, name) for name in ("speaker", "lang")}
    found["words"] = _by_length([(Score.from_dict(record).words.length, record) for record in records], WORDS, 1)
    timed = [(record["duration"], record) for record in records if "duration" in record]
    untimed = [record for record in records if "duration" not in record]
    found["seconds"] = _by_length(timed, SECONDS) + ([_row(NOT_GIVEN, untimed)] if timed and untimed else [])
    return {name: rows for name, rows in found.items() if len(rows) > 1}


def _by_value(records: Sequence[Record], name: str) -> list[dict[str, Any]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[NOT_GIVEN if record.get(name) is None else str(record[name])].append(record)
    rows = [_row(value, members) for value, members in groups.items()]
    return sorted(rows, key=lambda row: (-_edits(row), row["name"]))


def _by_length(records: Sequence[tuple[float, Record]], ends: Sequence[float], step: int = 0) -> list[dict[str, Any]]:
    """Buckets up to each of `ends`: with it where lengths are whole (`step` 1), else without."""
    rows = []
    for low, high in zip((0, *ends), (*ends, None), strict=True):
        start = low + step
        end = float("inf") if high is None else high + step
        members = [record for length, record in records if start <= length < end or (length == low == 0)]
        name = f"{start} and more" if high is None else f"{start} to {high}"
        rows += [_row(name, members)] if members else []
    return rows


def _row(name: str, records: Iterable[Record]) -> dict[str, Any]:
    scores = [Score.from_dict(record) for record in records]
    return {"name": name, "items": len(scores)} | sum(scores, Score()).to_dict()


def _edits(row: Mapping[str, Any]) -> int:
    return int(sum(row["words"][kind] for kind in KINDS.values()))


def confusions(records: Sequence[Record], normalisers: Normalisers, most: float | None = None) -> dict[str, Any]:
    """Of `substitutions`, `deletions` and `insertions` how many there are, how many different ones, and the most frequent.

    They are those that the word error rate counts, normalised and aligned alike.
    """
    found: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in KINDS.values()}
    for record in records:
        wanted, heard = compared(record["reference"], record["hypothesis"], normalisers.of(record), most)
        for kind, pair in edits(wanted, heard):
            found[kind][pair] += 1
    return {kind: _most_frequent(counts) for kind, counts in found.items()}


def edits(wanted: str, heard: str) -> Iterable[tuple[str, tuple[str, str]]]:
    """(kind, (word of the reference, word that was heard)) of each error; "" where there is none."""
    if not wanted:
        return [("insertions", ("", word)) for word in heard.split()]
    aligned = jiwer.process_words(wanted, heard)
    gone, new = aligned.references[0], aligned.hypotheses[0]
    return [
        (KINDS[chunk.type], pair)
        for chunk in aligned.alignments[0]
        if chunk.type != "equal"
        for pair in _pairs(gone[chunk.ref_start_idx : chunk.ref_end_idx], new[chunk.hyp_start_idx : chunk.hyp_end_idx])
    ]


def _pairs(gone: Sequence[str], new: Sequence[str]) -> Iterable[tuple[str, str]]:
    """jiwer joins neighbours of a kind: as many words of both texts, or words of one of them alone."""
    return zip(gone or [""] * len(new), new or [""] * len(gone), strict=True)


def _most_frequent(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    top = [{"reference": gone, "heard": new, "count": count} for (gone, new), count in ranked]
    return {"count": counts.total(), "different": len(counts), "top": top}
