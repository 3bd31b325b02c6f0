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
from ttt_dist.util.spoken_english import LONGEST, read_english

_NUMBER = r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<part>[0-9]+))?"
_CHINESE = re.compile(
    rf"(?P<minus>(?<![0-9A-Za-z.,])[-−])?(?:(?P<money>[¥￥$€£])\s?)?{_NUMBER}(?P<size>[百千万亿]+)?(?P<tail>\s?[%％]|\s?年|\s?(?:[℃℉]|°[CF]))?"
)
_ZH_UNITS = {"¥": "元", "￥": "元", "$": "美元", "€": "欧元", "£": "英镑", "℃": "摄氏度", "℉": "华氏度"}
_ZH_UNITS |= {unicodedata.normalize("NFKC", sign): _ZH_UNITS[sign] for sign in "℃℉"}
_ZH_DIGITS = "零一二三四五六七八九"
_FULL_WIDTH = re.compile("[0-9０-９]+")

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
        return partial(read_english, words)
    return partial(_read_chinese, words)


def _is_read_by_digit(whole: str) -> bool:
    return len(whole) > LONGEST or (len(whole) > 1 and whole[0] == "0")


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


def _telephone(_: Callable[..., Any], found: re.Match[str]) -> str:
    return ("加" if found[0][0] == "+" else "") + zh_digits("".join(filter(str.isdigit, found[0])))


def _joined(word: str) -> Callable[[Callable[..., Any], re.Match[str]], str]:
    """3:2 is 三比二, version 1.2.3 一点二点三."""

    def read(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
        parts = re.split("[:.]", found[0])
        return word.join(zh_digits(part) if _is_read_by_digit(part) else an2cn(part) for part in parts)

    return read


def _chinese(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    whole, part, tail = found["whole"].replace(",", ""), found["part"], (found["tail"] or "").strip()
    is_year = tail == "年" and len(whole) == 4 and part is None
    words = zh_digits(whole) if is_year or _is_read_by_digit(whole) else an2cn(whole)
    if part is not None:
        words += "点" + zh_digits(part)
    before = ("负" if found["minus"] else "") + ("百分之" if tail in ("%", "％") else "")
    after = _ZH_UNITS.get(found["money"] or tail, "年" if tail == "年" else "")
    return before + words + (found["size"] or "") + after


def zh_digits(digits: str) -> str:
    """ "2024" -> "二零二四"; full-width ones too."""
    return "".join(_ZH_DIGITS[int(digit)] for digit in digits)


_CHINESE_FORMS: list[tuple[re.Pattern[str], Callable[..., str]]] = [
    (re.compile(r"(?<![0-9])((?:19|20)[0-9]{2})[-/.](0?[1-9]|1[0-2])[-/.](0?[1-9]|[12][0-9]|3[01])(?![0-9])"), _date),
    (re.compile(r"(?<![0-9:.])([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?![0-9:])"), _clock),
    (re.compile(r"(?<![0-9/.,])([0-9]{1,9})/([1-9][0-9]{0,8})(?![0-9/])"), _fraction),
    (re.compile(r"\+[0-9][0-9 -]{5,}[0-9]|(?<![0-9-])1[0-9]{2}(?:[ -][0-9]{4}){2}(?![0-9-])"), _telephone),
    (re.compile(r"(?<![0-9-])(?:0[0-9]{2,3}-[0-9]{7,8}|[0-9]{3}(?:-[0-9]{3,4}){2})(?![0-9-])"), _telephone),
    (re.compile(r"[0-9]+(?::[0-9]+)+"), _joined("比")),
    (re.compile(r"[0-9]+(?:\.[0-9]+){2,}"), _joined("点")),
    (re.compile(r"(?<=[%％℃℉])[-–~～](?=[0-9])|(?<=[0-9])[~～](?=[0-9])"), lambda _, found: "到"),
    (re.compile(r"(?<![\w.])(?=\.[0-9])"), lambda _, found: "0"),
    (_CHINESE, _chinese),
]
"""In their order: what has a form of its own, then all other numbers."""
