"""Numerals as English words: recognisers write "314" where a reference has "three one four"."""

import re
from collections.abc import Callable

THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
LARGEST = 10**12


def spelt(words: str, read: Callable[[str], str]) -> str:
    """The words of a text, those that are numerals as `read` says them; "3rd" and "MP3" stay what they are."""
    return " ".join(read(word) if word.isascii() and word.isdigit() else word for word in words.split())


def digit_by_digit(numeral: str) -> str:
    """ "314" -> "three one four"."""
    return " ".join(ONES[int(digit)] for digit in numeral)


def as_number(numeral: str) -> str:
    """ "314" -> "three hundred fourteen". What starts with 0, or is too large, is read digit by digit."""
    is_number = numeral == "0" or (numeral[0] != "0" and int(numeral) < LARGEST)
    return _cardinal(int(numeral)) if is_number else digit_by_digit(numeral)


def _cardinal(number: int) -> str:
    """American words, without "and"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")
    scale, name = next(pair for pair in SCALES if number >= pair[0])
    rest = f" {_cardinal(number % scale)}" if number % scale else ""
    return f"{_cardinal(number // scale)} {name}{rest}"
