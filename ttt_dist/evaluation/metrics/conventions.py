"""How other toolkits split and compare texts, for figures beside theirs. Sources: docs/evaluation.md, Conventions."""

import re
import string
import unicodedata
from collections.abc import Iterator

from ttt_dist.evaluation.metrics.languages import language

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_WENET_LEFT_OUT = frozenset("!,?、。！，；？：「」︰『』《》")
_WENET_SPACES = " \t\r\n"
_WENET_RUN = re.compile(r"<[^> \t\r\n\x80-\U0010ffff]*>?|.[^ \t\r\n\x80-\U0010ffff]*", re.DOTALL)
_TAG = re.compile("<[^>]*>?")
_WHISPER_BY_LETTER = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


def espnet(text: str) -> str:
    """What sclite compares in asr.sh: words between white space, ASCII letters without case, all signs kept."""
    return " ".join(text.translate(_ASCII_LOWER).split())


def wenet(text: str) -> str:
    """What tools/compute-wer.py --char=1 compares: letters of writing without case apart, other runs whole, in upper case."""
    return " ".join(filter(None, (_TAG.sub("", token.upper()) for token in _wenet_tokens(text))))


def _wenet_tokens(text: str) -> Iterator[str]:
    """Some signs are left out, but only where a token would begin: "hello," keeps its comma. A run ends before any sign
    that is not ASCII, so that "café" is "caf" and "é"."""
    place = 0
    while place < len(text):
        char, end = text[place], place + 1
        category = unicodedata.category(char)
        if category == "Lo":
            yield char
        elif char not in _WENET_LEFT_OUT and char not in _WENET_SPACES and category not in ("Zs", "Cn"):
            found = _WENET_RUN.match(text, place)
            assert found, "the pattern takes any character"
            yield found[0]
            end = found.end()
        place = end


def whisper_name(lang: str | None) -> str:
    """Of Whisper's three ways (Radford et al. 2022, appendix C) that of a language."""
    code = language(lang)
    return "whisper-en" if code == "en" else "whisper-char" if code in _WHISPER_BY_LETTER else "whisper-basic"
