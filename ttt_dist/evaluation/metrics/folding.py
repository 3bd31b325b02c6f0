"""What texts are compared by: one form of letters that are encoded, or look, alike; no case, no punctuation.

Letters keep their combining marks: the vowels of Hindi, Tamil or Thai are such, as are the tones of Yoruba.
"""

import re
import unicodedata
from collections.abc import Callable

from ttt_dist.evaluation.metrics.languages import is_unspaced

APOSTROPHES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc\u02b9\u02c8\u2032\u00b4`\u0384\u1fbd\u1fbf\u055a\u05f3\ua78c", "'")
)
_INVISIBLE = re.compile(  # soft hyphens, tatweel, joiners, marks of direction, selectors of variants
    "[\u00ad\u034f\u0640\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
_PERSIAN = str.maketrans("يىك", "ییک")  # Arabic forms of letters that Persian keyboards write otherwise
_POINTS = re.compile("[\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed]")
_HALF_SPACED = re.compile("[^\\W_]+(?:\u200c[^\\W_]+)+")


def basic(text: str) -> str:
    """NFKC, lower case, punctuation other than apostrophes between letters gone, single spaces."""
    return _words(_one_form(text), str.lower)


def turkic(text: str) -> str:
    """As `basic`, with the case of Turkish and Azerbaijani: I is ı, İ is i (Unicode, SpecialCasing)."""
    return _words(_one_form(text), lambda text: text.replace("I", "ı").lower())


def persian(text: str) -> str:
    """As `basic`, with one form of yeh and of kaf."""
    return basic(unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).translate(_PERSIAN))


def by_character(text: str) -> str:
    """As `basic`, and each letter with its marks is a word in writing without spaces; runs of other letters and digits stay."""
    parts, is_inside = [], False
    for char in _one_form(text):
        if not _is_mark(char):
            was_inside, is_inside = is_inside, is_unspaced(char)
            parts.append(" " if is_inside or was_inside else "")
        parts.append(char)
    return _words("".join(parts), str.lower)


def _one_form(text: str) -> str:
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text.translate(APOSTROPHES)))
    text = text if text.isascii() else "".join(map(_digit, text))
    return unicodedata.normalize("NFC", text)


def _digit(char: str) -> str:
    return str(unicodedata.decimal(char)) if char.isdecimal() else char


def _words(text: str, lower: Callable[[str], str]) -> str:
    # The dot of İ is no letter's mark: "i" + U+0307 is what Python makes of it in lower case, here and in many corpora.
    text = lower(text.replace("İ", "i")).replace("i\u0307", "i")
    kept: list[str] = []
    for place, char in enumerate(text):
        if char.isalnum() or (_is_mark(char) and kept and kept[-1] != " "):
            kept.append(char)
        else:
            kept.append("'" if char == "'" and _between_letters(text, place) else " ")
    return " ".join("".join(kept).split())


def _between_letters(text: str, place: int) -> bool:
    before = text[place - 1] if place else " "
    return (before.isalpha() or _is_mark(before)) and text[place + 1 : place + 2].isalpha()


def _is_mark(char: str) -> bool:
    return not char.isascii() and unicodedata.category(char) in ("Mn", "Mc")


def joined_alike(one: str, other: str) -> tuple[str, str]:
    """Both texts; a word that one writes with half-spaces (ZWNJ, of Persian) and the other with spaces has half-spaces in both."""
    return _joined(one, other), _joined(other, one)


def _joined(text: str, like: str) -> str:
    for word in set(_HALF_SPACED.findall(like)):
        spaced = re.escape(word.replace("\u200c", " "))
        text = re.sub(rf"(?<!\w){spaced}(?!\w)", word, text)
    return text


def pointed_alike(one: str, other: str) -> tuple[str, str]:
    """Both texts; a word that occurs without vowel points (of Arabic, Hebrew) in either has none in both."""
    if not (_POINTS.search(one) or _POINTS.search(other)):
        return one, other
    bare = {word for word in (*one.split(), *other.split()) if not _POINTS.search(word)}

    def agreed(text: str) -> str:
        return " ".join(plain if (plain := _POINTS.sub("", word)) in bare else word for word in text.split())

    return agreed(one), agreed(other)
