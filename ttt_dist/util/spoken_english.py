"""Numbers in an English text as a speaker reads them: years, dates, times, money, fractions, ranges, telephone numbers.

num2words makes words of whole numbers, ordinals and years; what a number is, is told by its form and what stands beside it. Its
own currencies say "zero dollars, fifty cents" and take 5 for five cents.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

Num2Words = Callable[..., Any]
LONGEST = 10  # digits: more are a telephone number, or an identifier, and read one by one

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"{_WHOLE}(?:\.[0-9]+)?"
_SIGNS = "$£€¥₹"
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_COINS = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}
_SIZES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "t": "trillion", "tn": "trillion"}
_UNITS = {
    "%": "percent", "°": "degrees", "°C": "degrees Celsius", "℃": "degrees Celsius", "°F": "degrees Fahrenheit",
    "℉": "degrees Fahrenheit",
}  # fmt: skip
_FRACTIONS = {*range(2, 11), 12, 16, 20, 32, 50, 64, 100, 1000}
"""What a line over these is; 9/11 and 24/7 are no parts of anything."""


def read_english(num2words: Num2Words, text: str) -> str:
    """The text with words in the place of its digits; none is left."""
    for pattern, read in _FORMS:
        text = pattern.sub(partial(read, num2words), text)
    return text


def _apart(found: re.Match[str], words: str) -> str:
    """With a space where letters would run into the words: 5kg, B2B."""
    text = found.string
    before = " " if found.start() and text[found.start() - 1].isalnum() else ""
    after = " " if found.end() < len(text) and text[found.end()].isalnum() else ""
    return before + words + after


def _by_digit(digits: str) -> str:
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit.isdigit())


def _cardinal(num2words: Num2Words, whole: str) -> str:
    digits = whole.replace(",", "")
    if len(digits) > LONGEST or (len(digits) > 1 and digits[0] == "0"):
        return _by_digit(digits)
    return str(num2words(int(digits))).replace(",", "")


def _plain(num2words: Num2Words, number: str) -> str:
    """A number with its decimals; four digits of eleven to twenty-one centuries as a year is read."""
    whole, _, part = number.partition(".")
    if part:
        return f"{_cardinal(num2words, whole)} point {_by_digit(part)}"
    if re.fullmatch("1[1-9][0-9]{2}|20[0-9]{2}", whole):
        return str(num2words(int(whole), to="year"))
    return _cardinal(num2words, whole)


def _one_sign(_: Num2Words, found: re.Match[str]) -> str:
    """1½ as 1 1/2."""
    before = " " if found.string[: found.start()][-1:].isdigit() else ""
    after = " " if found.string[found.end() :][:1].isalnum() else ""
    return before + unicodedata.normalize("NFKC", found[0]) + after


def _date(num2words: Num2Words, found: re.Match[str]) -> str:
    year, month, day = found.groups()
    return f"{_MONTHS[int(month) - 1]} {num2words(int(day), to='ordinal')} {_plain(num2words, year)}"


def _hyphens(_: Num2Words, found: re.Match[str]) -> str:
    """10-20 is a range or a score. Three and more are a telephone number, an ISBN, 4-4-2: told digit by digit."""
    pieces = re.split("[-–]", found[0])
    is_chain = len(pieces) > 2 and all(map(str.isdigit, pieces))
    if pieces[0][0] in _SIGNS and not any(piece[0] in _SIGNS for piece in pieces[1:]):  # $5-10 billion
        pieces = [pieces[0][1:], *pieces[1:-1], pieces[0][0] + pieces[-1]]
    return _apart(found, _by_digit(found[0])) if is_chain else " to ".join(pieces)


def _telephone(_: Num2Words, found: re.Match[str]) -> str:
    return ("plus " if found[0][0] == "+" else "") + _apart(found, _by_digit(found[0]))


def _clock(num2words: Num2Words, found: re.Match[str]) -> str:
    hour, minute, second, half = found.groups()
    words = [str(num2words(int(hour)))]
    if minute != "00":
        words += ["oh"] * (minute[0] == "0") + [str(num2words(int(minute)))]
    elif not half:
        words.append("o'clock" if 1 <= int(hour) <= 12 else "hundred")
    if second:
        words.append(f"and {num2words(int(second))} second" + "s" * (int(second) != 1))
    return _apart(found, " ".join([*words, *([half.strip()] if half else [])]))


def _joined(word: str) -> Callable[[Num2Words, re.Match[str]], str]:
    def read(num2words: Num2Words, found: re.Match[str]) -> str:
        return _apart(found, f" {word} ".join(_plain(num2words, each) for each in re.split("[:/.]", found[0])))

    return read


def _fraction(num2words: Num2Words, found: re.Match[str]) -> str:
    whole, above, below = found.groups()
    if not 0 < int(above) < int(below) or int(below) not in _FRACTIONS:
        return found[0]
    name = {2: "half", 4: "quarter"}.get(int(below)) or str(num2words(int(below), to="ordinal"))
    part = f"{num2words(int(above))} {name}" + "s" * (int(above) > 1)
    return f"{_cardinal(num2words, whole)} and {'a half' if below == '2' else part}" if whole else part


def _money(num2words: Num2Words, found: re.Match[str]) -> str:
    """$5.50, $1, £0.99, $3.5 million, $20k, 5€."""
    one, many, coin, coins = _COINS[found["sign"] or found["behind"]]
    whole, part, size = found["whole"].replace(",", "") or "0", found["part"], found["size"]
    amount, cents = _cardinal(num2words, whole), int(part) if part and len(part) == 2 and coin and not size else None
    if cents is None:
        more = "" if size is None else " " + _SIZES.get(size.lower(), size.strip(" -"))
        words = f"{amount}{f' point {_by_digit(part)}' if part else ''}{more} {one if whole == '1' and not (part or size) else many}"
    else:
        each = [f"{amount} {one if whole == '1' else many}"] if int(whole) or not cents else []
        each += [f"{num2words(cents)} {coin if cents == 1 else coins}"] if cents else []
        words = " and ".join(each)
    return _apart(found, ("minus " if found["minus"] else "") + words)


def _plural(num2words: Num2Words, found: re.Match[str]) -> str:
    """The 1990s, '90s and 747s. 2024's is a genitive, 1990's a decade."""
    words = _plain(num2words, found[1])
    if found[2] != "s" and not found[1].endswith("0"):
        return _apart(found, words + found[2])
    ending = {"y": (1, "ies"), "x": (0, "es")}.get(words[-1], (0, "s"))
    return _apart(found, words[: len(words) - ending[0]] + ending[1])


def _number(num2words: Num2Words, found: re.Match[str]) -> str:
    number, tail = found["number"], (found["tail"] or "").strip()
    minus = "minus " if found["minus"] else ""
    if tail.lower() in ("st", "nd", "rd", "th") and "." not in number and len(number) <= LONGEST:
        return _apart(found, minus + str(num2words(int(number.replace(",", "")), to="ordinal")).replace(",", ""))
    words = f"point {_by_digit(number)}" if number[0] == "." else _plain(num2words, number)
    return _apart(found, minus + " ".join([words, *([_UNITS.get(tail.upper(), tail)] if tail else [])]))


_SPAN = rf"(?:[0-9]{{1,2}}:[0-9]{{2}}|[{_SIGNS}]?{_NUMBER}%?)"
_MINUS = r"(?P<minus>(?<![\w.,])[-−])?"  # x-5 is a name
_SIZE = r"(?P<size>[\s-](?:thousand|million|billion|trillion)\b|(?:[kmbt]|bn|tn)\b)?"
_FORMS: list[tuple[re.Pattern[str], Callable[[Num2Words, re.Match[str]], str]]] = [
    (re.compile("[¼½¾⅐-⅞]"), _one_sign),
    (re.compile(r"(?<![\w-])([12][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])(?![\w-])"), _date),
    (re.compile(r"\+[0-9][0-9 ()-]{5,}[0-9]|\([0-9]{2,4}\)\s?[0-9]{3,4}[- ]?[0-9]{3,4}(?![0-9])"), _telephone),
    (re.compile(rf"(?<![\w.,:/-]){_SPAN}(?:[-–]{_SPAN})+(?![-–0-9:/])"), _hyphens),
    (
        re.compile(
            r"(?<![\w:.,])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?![:0-9])(\s?[ap]\.?m\b)?", re.IGNORECASE
        ),
        _clock,
    ),
    (re.compile(r"[0-9]+(?::[0-9]+)+"), _joined("to")),
    (re.compile(r"(?<![\w.,/])(?:([0-9]{1,2})[ -])?([0-9]{1,3})[/⁄]([0-9]{1,4})(?![\w/]|[.,][0-9])"), _fraction),
    (re.compile(r"[0-9]+(?:/[0-9]+)+"), _joined("slash")),
    (re.compile(r"[0-9]+(?:\.[0-9]+){2,}"), _joined("point")),
    (
        re.compile(
            rf"{_MINUS}(?:(?P<sign>[{_SIGNS}])\s?|(?=[0-9,.]+[{_SIGNS}](?![0-9])))"
            rf"(?P<whole>{_WHOLE}|(?=\.[0-9]))(?:\.(?P<part>[0-9]+))?{_SIZE}(?(sign)|(?P<behind>[{_SIGNS}]))",
            re.IGNORECASE,
        ),
        _money,
    ),
    (re.compile(rf"(?:(?<!\w)['’](?=[0-9]{{2}}['’]?s))?(?<![0-9.,])({_WHOLE})(['’]?s)\b"), _plural),
    (
        re.compile(
            rf"{_MINUS}(?P<number>{_NUMBER}|(?<![\w.])\.[0-9]+)(?P<tail>\s?%|(?:st|nd|rd|th)\b|\s?(?:[℃℉]|°[CF]?(?!\w)))?",
            re.IGNORECASE,
        ),
        _number,
    ),
]
"""In their order: what has a form of its own, then all other numbers."""
