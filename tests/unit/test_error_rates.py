"""Error rates against values worked by hand, and against a shortest edit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.evaluation.metrics.error_rates import Counts, Score
from ttt_dist.evaluation.metrics.normalise import normaliser

BASIC = normaliser("basic")
BY_HAND = [
    # reference, hypothesis, words (hits, substitutions, deletions, insertions), WER, characters, CER
    ("three one four", "three one four", (3, 0, 0, 0), 0.0, (14, 0, 0, 0), 0.0),
    ("Three, one: four!", "three one four", (3, 0, 0, 0), 0.0, (14, 0, 0, 0), 0.0),
    ("three one four", "three nine", (1, 1, 1, 0), 2 / 3, None, None),
    ("one", "one two one", (1, 0, 0, 2), 2.0, (3, 0, 0, 8), 8 / 3),
    ("one two", "", (0, 0, 2, 0), 1.0, (0, 0, 7, 0), 1.0),
    ("one two", "?!", (0, 0, 2, 0), 1.0, (0, 0, 7, 0), 1.0),
    ("", "one two", (0, 0, 0, 2), None, (0, 0, 0, 7), None),
    ("", "", (0, 0, 0, 0), 0.0, (0, 0, 0, 0), 0.0),
    ("don't", "dont", (0, 1, 0, 0), 1.0, (4, 0, 1, 0), 0.2),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{case[0]!r} {case[1]!r}")
def test_rates_by_hand(case: tuple) -> None:
    reference, hypothesis, words, wer, characters, cer = case
    score = Score.of(reference, hypothesis, BASIC)
    assert score.words == Counts(*words)
    assert score.words.rate == wer
    if characters is not None:
        assert score.characters == Counts(*characters)
        assert score.characters.rate == cer


@pytest.mark.parametrize(
    ("lang", "reference", "hypothesis", "wer", "cer"),
    [
        ("zh", "今天很好", "今天 不好。", 1 / 4, 1 / 4),  # a word is a character, whatever the spaces
        ("zh", "我用Python", "我用 python", 0.0, 0.0),
        ("zh", "我用Python", "我用 java", 1 / 3, 6 / 8),
        ("en", "I'll pay twenty one dollars", "I will pay $21.", 0.0, 0.0),
        ("de", "zehn Meter", "10 Meter", 1 / 2, 4 / 10),
        ("hi", "की बात", "का बात", 1 / 2, 1 / 6),  # vowels are marks
        ("yo", "ọ̀rẹ́ mi", "ọ̀rẹ mi", 1 / 2, 1 / 8),
        ("ar", "كَتَبَ الدرس", "كُتِبَ الدرس", 1 / 2, 2 / 12),
        ("ar", "كَتَبَ الدرسَ", "كتب الدرس", 0.0, 0.0),  # points may be left out, word by word
        ("he", "שלום לך", "שָׁלוֹם לָךְ", 0.0, 0.0),
        ("tr", "IŞIK İstanbul", "ışık istanbul", 0.0, 0.0),
        ("uk", "м\u2019ята", "м\u02bcята", 0.0, 0.0),
        ("fa", "می\u200cروم خانه", "می روم خانه", 0.0, 0.0),  # a half-space, a space, or none: one word
        ("fa", "می روم خانه", "می\u200cروم خانه", 0.0, 0.0),
        ("fa", "می\u200cروم خانه", "میروم خانه", 0.0, 0.0),
        ("Mandarin Chinese", "今天很好", "今天不好", 1 / 4, 1 / 4),
        ("ja_jp", "今日は晴れ", "今日は雨", 2 / 5, 2 / 5),
        ("th", "สวัสดี", "สวัสดู", 1 / 4, 1 / 6),  # letters with their marks; signs
    ],
)
def test_rates_of_a_language(lang: str, reference: str, hypothesis: str, wer: float, cer: float) -> None:
    score = Score.of(reference, hypothesis, normaliser(lang))
    assert (score.words.rate, score.characters.rate) == pytest.approx((wer, cer))


def edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


WORDS = st.lists(st.sampled_from(["one", "two", "six"]), max_size=7)


@given(WORDS, WORDS)
def test_counts_are_a_shortest_edit(reference: list[str], hypothesis: list[str]) -> None:
    counts = Score.of(" ".join(reference), " ".join(hypothesis), BASIC).words
    assert counts.edits == edit_distance(reference, hypothesis)
    assert counts.length == len(reference)
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis)


def test_a_corpus_rate_is_that_of_the_sums() -> None:
    pairs = [("one two three", "one"), ("", "four"), ("five", "five")]
    total = sum((Score.of(*pair, BASIC) for pair in pairs), Score())
    assert total.words == Counts(hits=2, deletions=2, insertions=1)
    assert total.words.rate == 3 / 4
    assert total.to_dict()["wer"] == 0.75


def test_a_score_names_its_normalisers_and_comes_back_from_a_record() -> None:
    total = Score.of("one", "one", BASIC) + Score.of("一", "二", normaliser("zh")) + Score()
    record = total.to_dict()
    assert record["normaliser"] == "basic + zh-char"
    assert Score.from_dict(record) == total
    assert Score.from_dict(Score().to_dict()) == Score()


def test_a_numeral_is_read_as_the_reference_says_it() -> None:
    spelt = normaliser("spelt-en")
    for reference in ("three one four", "three hundred fourteen", "314"):
        assert Score.of(reference, "3-1-4" if reference == "three one four" else "314", spelt).words.edits == 0
    assert Score.of("three one four", "315", spelt).words == Counts(2, 1, 0, 0)
    assert Score.of("three one four", "314", BASIC).words == Counts(0, 1, 2, 0)


def test_a_transcript_without_end_is_cut_by_the_length_of_the_reference() -> None:
    endless = "one two " * 200
    assert Score.of("one two", endless, BASIC).words.edits == 398
    assert Score.of("one two", endless, BASIC, most=2).words == Counts(2, 0, 0, 2)
    assert Score.of("one two", "one two two", BASIC, most=2).words == Counts(2, 0, 0, 1)  # what fits is not cut
    cut = Score.of("一二", "一二" * 50, normaliser("zh"), most=2)
    assert (cut.words.edits, cut.characters.edits) == (2, 2)
    assert Score.of("...", endless, BASIC, most=2).words == Counts()
