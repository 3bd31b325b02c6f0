"""What a text rule does: pure functions of a text and its language, made by the argument that stands in the YAML."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from data_prep.readers.transcripts import PUNCTUATION, unsegmented
from ttt_dist.util.errors import UserError

TextRule = Callable[[str, str | None], str]
"""Of a text and the language of its entry, where that is known."""

_INNER = "'’-"  # belongs to the word where letters stand at both sides
_ASCII = {
    **dict.fromkeys("“”„«»「」『』", '"'),
    **dict.fromkeys("‘’‚‹›", "'"),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys("，、", ","),
    **{"。": ".", "．": ".", "！": "!", "？": "?", "：": ":", "；": ";", "（": "(", "）": ")", "％": "%", "…": "..."},
}


def case(form: str) -> TextRule:
    """`lower` or `upper`."""
    change = str.lower if form == "lower" else str.upper
    return lambda text, lang: change(text)


def unicode_form(form: str) -> TextRule:
    """One of Unicode's normal forms; NFKC also makes full-width letters and digits plain ones."""
    normal: Any = form
    return lambda text, lang: unicodedata.normalize(normal, text)


def spaces(_: None) -> TextRule:
    """Single spaces between words, none at the ends."""
    return lambda text, lang: " ".join(text.split())


def han_spaces(_: None) -> TextRule:
    """No spaces beside Han characters; those between other words stay."""
    return lambda text, lang: unsegmented(text)


def tags(replacements: Mapping[str, str] | None) -> TextRule:
    """Tags such as `<COMMA>` become what they stand for; without a mapping, GigaSpeech's four become punctuation.

    Spaces before a tag go with it, unless a word takes its place.
    """
    words = {f"<{name}>": sign for name, sign in PUNCTUATION.items()} if replacements is None else dict(replacements)
    among = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    pattern = re.compile(rf"\s*({among})")

    def put(found: re.Match[str]) -> str:
        word = words[found[1]]
        return f" {word}" if word[:1].isalnum() else word

    return lambda text, lang: pattern.sub(put, text).strip()


def punctuation(form: str) -> TextRule:
    """`ascii`: curly, full-width and Chinese signs become plain ones. `remove`: all go, but for ' and - within words."""
    if form == "ascii":
        table = str.maketrans(_ASCII)
        return lambda text, lang: text.translate(table)
    return lambda text, lang: " ".join(_punctuation().sub(" ", text).split())


@cache
def _punctuation() -> re.Pattern[str]:
    """Unicode's punctuation; by category, as `\\W` has the vowel signs of Indian scripts too."""
    signs = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)).startswith("P")]
    outer = "".join(map(re.escape, (sign for sign in signs if sign not in _INNER)))
    return re.compile(rf"[{outer}]|(?<![^\W_])[{_INNER}]|[{_INNER}](?![^\W_])")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """The argument of a rule that has a few. Raises UserError where it is none of them."""
    if value not in choices:
        raise UserError(f"{name}: {value!r} is none of {', '.join(choices)}; write `{name}: {choices[0]}`")
    return str(value)
