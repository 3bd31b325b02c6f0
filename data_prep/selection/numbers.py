"""Numbers in digits as they are read aloud, in English by num2words and in Chinese by cn2an (the extra `text`).

The packages turn whole numbers into words; where a number begins and ends, decimals, signs, years and what is read digit
by digit is told here: cn2an's own search of a text cuts 1,234 in two and leaves the dot in -3.5℃.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from data_prep.selection.text_functions import TextRule
from ttt_dist.util.errors import UserError

_NUMBER = r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<part>[0-9]+))?"
_ENGLISH = re.compile(
    rf"(?P<minus>(?<![\w.,])[-−])?{_NUMBER}(?P<tail>\s?%|(?:st|nd|rd|th)\b)?", re.IGNORECASE
)  # 10-20 is a range, x-5 a name
_CHINESE = re.compile(rf"(?P<minus>(?<![0-9A-Za-z.,])[-−])?{_NUMBER}(?P<tail>\s?[%％]|\s?年)?")
_EN_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_ZH_DIGITS = "零一二三四五六七八九"
LONGEST = 10  # digits: more are a telephone number, or an identifier, and read one by one

LANGUAGES = {"en": ("en",), "zh": ("zh", "cmn")}
"""First parts of the codes of a language."""
PACKAGES = {"en": ("num2words", "num2words"), "zh": ("cn2an", "an2cn")}


def numbers(lang: str) -> TextRule:
    """Numbers of entries in that language, or in none that is known. Raises UserError where the package is missing."""
    module, name = PACKAGES[lang]
    try:
        words: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f'numbers: {error.name} is not installed; pip install -e ".[text]"') from error
    pattern = {"en": _ENGLISH, "zh": _CHINESE}[lang]
    read = partial({"en": _english, "zh": _chinese}[lang], words)

    def rule(text: str, of: str | None) -> str:
        is_ours = not of or re.split("[-_]", of.lower())[0] in LANGUAGES[lang]
        return pattern.sub(read, text) if is_ours else text

    return rule


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


def _chinese(an2cn: Callable[..., Any], found: re.Match[str]) -> str:
    whole, part, tail = found["whole"].replace(",", ""), found["part"], (found["tail"] or "").strip()
    is_year = tail == "年" and len(whole) == 4 and part is None
    words = _zh_digits(whole) if is_year or _is_read_by_digit(whole) else an2cn(whole)
    if part is not None:
        words += "点" + _zh_digits(part)
    percent = "百分之" if tail in ("%", "％") else ""
    return ("负" if found["minus"] else "") + percent + words + ("年" if tail == "年" else "")


def _zh_digits(digits: str) -> str:
    return "".join(_ZH_DIGITS[int(digit)] for digit in digits)
