"""Pieces of reports: errors are marked where they are, and what a run or a user wrote stays text."""

import re
from html import unescape

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.released_way import AUDIO_RATIO, TEXT_RATIO, interleaved
from ttt_dist.evaluation import report

WORDS = st.lists(st.sampled_from(["one", "two", "three", "a<b"]), max_size=8).map(" ".join)


@given(reference=WORDS, hypothesis=WORDS)
def test_a_marked_transcript_holds_both_texts(reference: str, hypothesis: str) -> None:
    """Without what is struck out it is what was heard; without what is underlined it is what was said."""
    marked = report.marked(reference, hypothesis)

    def words(gone: str) -> list[str]:
        return unescape(re.sub(r"<[^>]*>", "", re.sub(rf"<{gone}>.*?</{gone}>", "", marked))).split()

    assert words("del") == hypothesis.split()
    assert words("ins") == reference.split()
    assert ("<ins>" in marked or "<del>" in marked) == (reference != hypothesis)


def test_word_errors_are_for_sorting() -> None:
    assert report.word_errors("one two", "one three") == 0.5
    assert report.word_errors("", "three words here") == 3.0
    assert report.word_errors("one", "one") == 0.0


def test_what_others_wrote_is_text() -> None:
    bad = "<script>alert(1)</script>"
    pieces = [
        report.page(bad, bad, []), report.section(bad, bad, ""), report.note(bad), report.figures({bad: bad}), report.row(bad, []),
        report.captioned(bad, bad), report.marked(bad, bad), report.text(bad), report.folded(bad, ""),
        report.table([bad], []),
    ]  # fmt: skip
    assert all("<script" not in piece and "&lt;script&gt;" in piece for piece in pieces)
    assert report.note("") == ""


@given(num_words=st.integers(0, 60), num_codes=st.integers(0, 120))
def test_the_released_way_loses_no_word_and_no_code(num_words: int, num_codes: int) -> None:
    words = [f"w{number}" for number in range(num_words)]
    told = interleaved(np.arange(num_codes), " ".join(words))
    assert re.findall(r"w\d+", told) == words
    assert [int(code) for code in re.findall(r"<\|audio_(\d+)\|>", told)] == list(range(num_codes))
    whole = min((num_words - 1) // TEXT_RATIO, (num_codes - 1) // AUDIO_RATIO)
    assert told.count("<|begin_of_audio|>") == max(whole, 0)
    assert told.endswith("<|end_of_audio_span_last|>")
