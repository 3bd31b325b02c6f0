"""Where the errors of transcripts are, as tables for the page and the Markdown of a summary."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

GROUPS = {
    "speaker": "Errors by speaker",
    "lang": "Errors by language",
    "words": "Errors by length of the reference, words",
    "seconds": "Errors by length of the recording, seconds",
}
MOST_GROUPS = 20
MOST_WORDS = 15


class ErrorTable(NamedTuple):
    """A titled table of texts."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def error_tables(summary: Mapping[str, Any]) -> Iterator[ErrorTable]:
    """Of a summary of transcripts: rates by group, and the most frequent confusions of words. None of what is not known."""
    for name, title in GROUPS.items():
        if groups := summary.get("breakdown", {}).get(name):
            yield _by_group(name, title, groups)
    if any(kind["count"] for kind in summary.get("confusions", {}).values()):
        yield _confused(summary["confusions"])


def _by_group(name: str, title: str, groups: list[dict[str, Any]]) -> ErrorTable:
    hidden = len(groups) - MOST_GROUPS
    shown = "Most errors first" if name in ("speaker", "lang") else "In per cent of the reference's words"
    more = f"; {hidden:,} more stand in the summary's JSON" if hidden > 0 else ""
    header = [name, "items", "words", "substituted %", "deleted %", "inserted %", "WER %", "CER %"]
    return ErrorTable(title, f"{shown}{more}.", header, [_rates(group) for group in groups[:MOST_GROUPS]])


def _rates(group: Mapping[str, Any]) -> list[str]:
    words = group["words"]
    length = words["hits"] + words["substitutions"] + words["deletions"]
    kinds = [words[kind] / length if length else None for kind in ("substitutions", "deletions", "insertions")]
    rates = [_percent(rate) for rate in (*kinds, group["wer"], group["cer"])]
    return [group["name"], f"{group['items']:,}", f"{length:,}", *rates]


def _percent(rate: float | None) -> str:
    return "none" if rate is None else f"{100 * rate:.1f}"


def _confused(kinds: Mapping[str, Any]) -> ErrorTable:
    """Three lists side by side."""
    columns = [_listed(kinds[kind]) for kind in ("substitutions", "deletions", "insertions")]
    height = max(map(len, columns))
    rows = [[column[row] if row < len(column) else "" for column in columns] for row in range(height)]
    header = [f"{kind} ({found['count']:,}, {found['different']:,} different)" for kind, found in kinds.items()]
    return ErrorTable("Words confused", "The most frequent, as the word error rate counts them.", header, rows)


def _listed(kind: Mapping[str, Any]) -> list[str]:
    return [
        f"{one['count']:,} × " + " → ".join(filter(None, (one["reference"], one["heard"])))
        for one in kind["top"][:MOST_WORDS]
    ]
