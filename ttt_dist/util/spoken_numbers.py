"""Numbers in digits as they are read aloud, in English by num2words and in Chinese by cn2an (the extra `text`).

The packages turn whole numbers into words; where a number begins and ends, decimals, signs, years and what is read digit
by digit is told here: cn2an's own search of a text cuts 1,234 in two and leaves the dot in -3.5℃.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ttt_dist.util.errors import UserError

_NUMBER = r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<part>[0-9]+))?"
_ENGLISH = re.compile(
    rf"(?P<minus>(?<![\w.,])[-−])?{_NUMBER}(?P<tail>\s?%|(?:st|nd|rd|th)\b)?", re.IGNORECASE
)  # 10-20 is a range, x-5 a name
_CHINESE = re.compile(
    rf"(?P<minus>(?<![0-9A-Za-z.,])[-−])?(?P<money>[¥￥$])?{_NUMBER}(?P<tail>\s?[%％]|\s?年|\s?(?:[℃℉]|°[CF]))?"
)
_ZH_UNITS = {"¥": "元", "￥": "元", "$": "美元", "℃": "摄氏度", "℉": "华氏度"}
_ZH_UNITS |= {unicodedata.normalize("NFKC", sign): _ZH_UNITS[sign] for sign in "℃℉"}
_EN_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_ZH_DIGITS = "零一二三四五六七八九"
_FULL_WIDTH = re.compile("[0-9０-９]+")
LONGEST = 10  # digits: more are a telephone number, or an identifier, and read one by one

PACKAGES = {"en": ("num2words", "num2words"), "zh": ("cn2an", "an2cn")}
"""By language, where the function is that makes words of a whole number."""


def number_reader(lang: str, what: str) -> Callable[[str], str]:
    """What puts words in the place of a text's numbers. Raises UserError, which begins with `what`, where the package is missing."""
    module, name = PACKAGES[lang]
    try:
        words: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f'{what}: {error.name} is not installed; pip install -e ".[text]"') from error
    if lang == "en":
        return partial(_ENGLISH.sub, partial(_english, words))
    return partial(_read_chinese, words)


def _is_read_by_digit(whole: str) -> bool:
    return len(whole) > LONGEST or (len(whole) > 1 and whole[0] == "0")


def _english(num2words: Callable[..., Any], found: re.Match[str]) -> str:
    whole, part, tail = found["whole"].replace(",", ""), found["part"], (found["tail"] or "").strip()
    if tail not in ("", "%") and part is None and not _is_read_by_digit(whole):
        return _apart(found, num2words(int(whole), to="ordinal").replace(",", ""))
    words = [_EN_DIGITS[int(digit)] for digit in whole]
    if not _is_read_by_digit(whole):
        words = [num2words(int(whole)).replace(",", "")]
    if part is not None:
        words += ["point", *(_EN_DIGITS[int(digit)] for digit in part)]
    after = ["percent"] if tail == "%" else [tail] if tail else []
    return _apart(found, " ".join([*(["minus"] if found["minus"] else []), *words, *after]))


def _apart(found: re.Match[str], words: str) -> str:
    """With a space where letters would run into the words: 5kg, B2B."""
    text = found.string
    before = " " if found.start() and text[found.start() - 1].isalnum() else ""
    after = " " if found.end() < len(text) and text[found.end()].isalnum() else ""
    return before + words + after


def _read_chinese(an2cn: Callable[..., Any], text: str) -> str:
    text = _FULL_WIDTH.sub(lambda found: "".join(str(int(digit)) for digit in found[0]), text)
    for pattern, read in _CHINESE_FORMS:
        text = pattern.sub(partial(read, an2cn), text)
    return text


def digits_one_by_one(text: str) -> str:
    """A Chinese text, each digit as a word: 13 is 一三."""
    return _FULL_WIDTH.sub(lambda found: zh_digits(found[0]), text)


def _date(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    year, month, day = found.groups()
    return f"{zh_digits(year)}年{an2cn(int(month))}月{an2cn(int(day))}日"


def _clock(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    """8:05 and 08:00:30; a full hour has no minutes."""
    hour, minute, second = found.groups()
    minutes = "" if minute == "00" and not second else f"{_two_digits(an2cn, minute)}分"
    return f"{an2cn(int(hour))}点{minutes}" + (f"{_two_digits(an2cn, second)}秒" if second else "")


def _two_digits(an2cn: Callable[..., Any], digits: str) -> str:
    return ("零" if digits[0] == "0" != digits[1] else "") + str(an2cn(int(digits)))


def _fraction(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    above, below = found.groups()
    return f"{an2cn(int(below))}分之{an2cn(int(above))}"


def _chinese(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    whole, part, tail = found["whole"].replace(",", ""), found["part"], (found["tail"] or "").strip()
    is_year = tail == "年" and len(whole) == 4 and part is None
    words = zh_digits(whole) if is_year or _is_read_by_digit(whole) else an2cn(whole)
    if part is not None:
        words += "点" + zh_digits(part)
    before = ("负" if found["minus"] else "") + ("百分之" if tail in ("%", "％") else "")
    after = _ZH_UNITS.get(found["money"] or tail, "年" if tail == "年" else "")
    return before + words + after


def zh_digits(digits: str) -> str:
    """ "2024" -> "二零二四"; full-width ones too."""
    return "".join(_ZH_DIGITS[int(digit)] for digit in digits)


_CHINESE_FORMS: list[tuple[re.Pattern[str], Callable[..., str]]] = [
    (re.compile(r"(?<![0-9])((?:19|20)[0-9]{2})[-/.](0?[1-9]|1[0-2])[-/.](0?[1-9]|[12][0-9]|3[01])(?![0-9])"), _date),
    (re.compile(r"(?<![0-9:.])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])"), _clock),
    (re.compile(r"(?<![0-9/.,])([0-9]{1,9})/([1-9][0-9]{0,8})(?![0-9/])"), _fraction),
    (_CHINESE, _chinese),
]
"""In their order: what has a form of its own, then all other numbers."""
