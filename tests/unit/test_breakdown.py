"""Where errors are: rates of groups add up to those of all, confusions are the edits that the word error rate counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.evaluation.error_tables import error_tables
from ttt_dist.evaluation.metrics.breakdown import KINDS, NOT_GIVEN, TOP, edits, transcripts
from ttt_dist.evaluation.metrics.scores import Normalisers
from ttt_dist.evaluation.summary import table

BASIC = Normalisers("basic")


def record(number: int, reference: str, hypothesis: str, **fields: Any) -> dict[str, Any]:
    return {"id": str(number), "reference": reference, "hypothesis": hypothesis} | fields


RECORDS = [
    record(0, "the cat sat on the mat", "the bat sat the mat now", speaker="ann", lang="en", duration=2.0),
    record(1, "The cat.", "a bat", speaker="ann", lang="en", duration=1.5),
    record(2, "all is well", "all is well", speaker="bo", lang="en", duration=31.0),
    record(3, "...", "uh", lang="en"),
]


def test_errors_by_hand() -> None:
    details = transcripts(RECORDS, BASIC).details
    ann, unnamed, bo = details["breakdown"]["speaker"]
    assert (unnamed["name"], unnamed["items"], unnamed["words"]["insertions"]) == (NOT_GIVEN, 1, 1)
    assert (ann["name"], ann["items"], ann["wer"], bo["name"], bo["wer"]) == ("ann", 2, round(5 / 8, 6), "bo", 0.0)
    assert ann["words"] == {"hits": 4, "substitutions": 3, "deletions": 1, "insertions": 1}
    assert "lang" not in details["breakdown"]  # one alone says nothing
    lengths = {
        name: [(row["name"], row["items"]) for row in details["breakdown"][name]] for name in ("words", "seconds")
    }
    assert lengths["words"] == [("1 to 5", 3), ("6 to 10", 1)]
    assert lengths["seconds"] == [("0 to 2", 1), ("2 to 5", 1), ("30 and more", 1), (NOT_GIVEN, 1)]
    found = details["confusions"]
    assert found["substitutions"]["top"] == [
        {"reference": "cat", "heard": "bat", "count": 2},
        {"reference": "the", "heard": "a", "count": 1},
    ]
    assert found["deletions"] == {"count": 1, "different": 1, "top": [{"reference": "on", "heard": "", "count": 1}]}
    assert [(one["heard"], one["count"]) for one in found["insertions"]["top"]] == [("now", 1), ("uh", 1)]


def test_the_tables_are_read_by_people() -> None:
    tables = {one.title: one for one in error_tables(transcripts(RECORDS, BASIC).details)}
    speakers = tables["Errors by speaker"]
    assert speakers.rows[0] == ["ann", "2", "8", "37.5", "12.5", "12.5", "62.5", *speakers.rows[0][7:]]
    confused = table(tables["Words confused"].header, tables["Words confused"].rows)
    assert "substitutions (3, 2 different)" in confused and "2 × cat → bat" in confused and "1 × on" in confused
    right = [record(0, "well", "well", speaker="a"), record(1, "well", "well", speaker="b")]
    assert [one.title for one in error_tables(transcripts(right, BASIC).details)] == ["Errors by speaker"]


def test_what_does_not_fit_is_told() -> None:
    many = [record(n, f"word{n:03}", "", speaker=f"s{n:03}") for n in range(TOP + 1)]
    details = transcripts(many, BASIC).details
    assert len(details["breakdown"]["speaker"]) == TOP + 1
    deleted = details["confusions"]["deletions"]
    assert (deleted["count"], deleted["different"], len(deleted["top"])) == (TOP + 1, TOP + 1, TOP)
    assert "31 more stand in the summary's JSON" in next(error_tables(details)).note


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["x", "y", None])), min_size=1, max_size=6))
def test_parts_are_the_whole(rows: list[tuple[str, str, str | None]]) -> None:
    scored = transcripts([record(n, ref, hyp, speaker=who) for n, (ref, hyp, who) in enumerate(rows)], BASIC)
    confused = scored.details["confusions"]
    assert {kind: confused[kind]["count"] for kind in KINDS.values()} == {
        kind: scored.details["words"][kind] for kind in KINDS.values()
    }
    for groups in scored.details["breakdown"].values():
        assert sum(group["items"] for group in groups) == len(rows)
        total = {kind: sum(group["words"][kind] for group in groups) for kind in scored.details["words"]}
        assert total == scored.details["words"]


@pytest.mark.parametrize("most", [None, 1.0])
def test_what_is_cut_is_not_confused(most: float | None) -> None:
    confused = transcripts([record(0, "a b", "a b b b")], BASIC, most).details["confusions"]
    assert confused["insertions"]["count"] == (0 if most else 2)
    assert list(edits("", "b b")) == [("insertions", ("", "b"))] * 2
