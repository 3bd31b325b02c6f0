"""Numerals as words, against the other way round."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ttt_dist.evaluation.metrics.spelling import LARGEST, ONES, SCALES, TENS, as_number, digit_by_digit, spelt

VALUES = {word: value for value, word in enumerate(ONES)} | {word: 10 * value for value, word in enumerate(TENS, 2)}
SCALE_OF = {word: value for value, word in SCALES}


def value_of(words: str) -> int:
    """What a number in words is: read from left to right, as one learns it at school."""
    total = group = 0
    for word in words.split():
        if word == "hundred":
            group *= 100
        elif word in SCALE_OF:
            total, group = total + group * SCALE_OF[word], 0
        else:
            group += VALUES[word]
    return total + group


@given(st.integers(0, LARGEST - 1))
@example(0)
@example(10**9)
@example(1_000_001)
@example(100_100)
def test_a_number_in_words_is_that_number(number: int) -> None:
    assert value_of(as_number(str(number))) == number


@pytest.mark.parametrize(
    ("numeral", "words"),
    [
        ("314", "three hundred fourteen"),
        ("21", "twenty one"),
        ("40", "forty"),
        ("1900", "one thousand nine hundred"),
        ("2000000", "two million"),
        ("007", "zero zero seven"),
        (str(LARGEST), "one" + 12 * " zero"),
    ],
)
def test_words_are_those_that_one_says(numeral: str, words: str) -> None:
    assert as_number(numeral) == words


@given(st.text("0123456789", min_size=1, max_size=30))
def test_digit_by_digit(numeral: str) -> None:
    assert [ONES.index(word) for word in digit_by_digit(numeral).split()] == [int(digit) for digit in numeral]


def test_only_whole_words_that_are_numerals_are_read() -> None:
    assert spelt("the 3rd of 12 MP3 ٣ ²", as_number) == "the 3rd of twelve MP3 ٣ ²"
