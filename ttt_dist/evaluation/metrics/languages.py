"""Which language a tag or a name means, and which writing a text is in where nobody says its language.

Corpora write one language in many ways: `zh`, `zh-CN`, `cmn_hans_cn`, "Mandarin Chinese", "Chinese (Taiwan)", `中文`.
"""

import re
import unicodedata
from collections.abc import Iterable

NAMES = {
    "en": "english",
    "zh": "chinese mandarin putonghua 中文 汉语 漢語 普通话 普通話 国语 國語 华语 華語",
    "yue": "cantonese 粤语 粵語 广东话 廣東話",
    "ja": "japanese 日本語",
    "th": "thai ไทย ภาษาไทย",
    "lo": "lao laotian ລາວ ພາສາລາວ",
    "km": "khmer cambodian ខ្មែរ ភាសាខ្មែរ",
    "my": "burmese myanmar မြန်မာ မြန်မာဘာသာ",
    "bo": "tibetan བོད་སྐད",
    "dz": "dzongkha",
    "tr": "turkish türkçe",
    "az": "azerbaijani azeri azərbaycan azərbaycanca",
    "fa": "persian farsi dari فارسی",
}
CODES = {
    "en": "eng",
    "zh": "zho chi cmn cn wuu nan hak gan hsn cdo cpx czo czh cjy mnp lzh",
    "yue": "",
    "ja": "jpn jp",
    "th": "tha",
    "lo": "lao",
    "km": "khm",
    "my": "mya bur",
    "bo": "bod tib",
    "dz": "dzo",
    "tr": "tur",
    "az": "aze azj azb",
    "fa": "fas per pes prs",
}
"""Of ISO 639-2 and -3, and two that are countries' (`cn`, `jp`), which no language has."""

_BY_NAME = {name: code for code, names in NAMES.items() for name in names.split()}
_BY_CODE = {old: code for code, olds in CODES.items() for old in (code, *olds.split())}
_PARTS = re.compile(r"[-_\s()\[\],./;:]+")

HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
UNSPACED = {
    "ja": "\u3031-\u3035\u303b-\u303c\u3041-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f",
    "zh": f"{HAN}\u3105-\u312f\u31a0-\u31bf",
    "th": "\u0e01-\u0e5b",
    "lo": "\u0e81-\u0edf",
    "km": "\u1780-\u17ff",
    "my": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "bo": "\u0f00-\u0fff",
    "tai": "\u1950-\u19df\u1a20-\u1aaf",  # Tai Le, New Tai Lue, Tai Tham
}
"""Writing without spaces between words, by a language that has it."""
_WRITTEN = {code: re.compile(f"[{ranges}]") for code, ranges in UNSPACED.items()}
_ANY = re.compile(f"[{''.join(UNSPACED.values())}]")
_RUN = re.compile(r"[^\W\d_]+")
_TURKIC = re.compile("[ıİ]")


def language(tag: str | None) -> str | None:
    """The code of a language by which tables have it; None without any.

    The first part of the tag decides, else a name in it: "Mandarin Chinese", "Min Nan Chinese".
    """
    parts = [part for part in _PARTS.split(unicodedata.normalize("NFC", tag or "").replace("İ", "i").lower()) if part]
    if not parts:
        return None
    found = _BY_CODE.get(parts[0]) or next((_BY_NAME[part] for part in parts if part in _BY_NAME), None)
    return found or parts[0]


def is_unspaced(char: str) -> bool:
    """Whether it belongs to a writing without spaces between words."""
    return _ANY.match(char) is not None


def written_language(texts: Iterable[str]) -> str | None:
    """A language that is written so, where that matters for scores.

    By most units, a run of spaced letters being one like any other letter; or by letters that only it has.
    """
    text = " ".join(texts)
    found = _ANY.findall(text)
    if len(found) > len(_RUN.findall(_ANY.sub(" ", text))):
        counts = {code: len(pattern.findall(text)) for code, pattern in _WRITTEN.items()}
        most = max(counts, key=lambda code: counts[code])
        return "ja" if most == "zh" and counts["ja"] else most
    return "tr" if _TURKIC.search(text) else None
