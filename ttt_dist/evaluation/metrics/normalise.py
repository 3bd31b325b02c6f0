"""Normalisers: what two texts may differ in without an error being counted. Both sides of a score go through the same one.

A score bears its normaliser's name, because figures of different normalisers do not compare.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ttt_dist.evaluation.metrics.spelling import THOUSANDS, as_number, digit_by_digit, spelt
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_function, load_named

FLAG = "--normaliser"
SPELLING = "normalizer.json"  # beside the weights of a Whisper folder: British spellings and their American form

HAN = re.compile(
    "([\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af])"
)


@dataclass(frozen=True)
class Normaliser:
    """A text to its words, single spaces between them."""

    name: str
    function: Callable[[str], str]
    has_spaces: bool = True
    """Whether the spaces are the text's own, and so count as characters."""
    otherwise: Callable[[str], str] | None = None
    """Another way to read what was heard, as good as `function`."""

    def __call__(self, text: str) -> str:
        return self.function(text)

    def words(self, text: str) -> list[str]:
        """The words of the normalised text."""
        return self(text).split()

    def readings(self, text: str) -> list[str]:
        """The normalised texts that a hypothesis may stand for: "314" is "three one four" as well."""
        return [self(text)] if self.otherwise is None else [self(text), self.otherwise(text)]

    def characters(self, text: str) -> str:
        """The normalised text as its characters are counted."""
        return self.counted(self(text))

    def counted(self, normalised: str) -> str:
        """The characters of a normalised text that count."""
        return normalised if self.has_spaces else normalised.replace(" ", "")


def normaliser(name_or_lang: str | None, folder: Path | None = None) -> Normaliser:
    """The normaliser of one of NORMALISERS, or of a language: the row that has it, else basic.

    `folder` is where Whisper's spelling table is, if anywhere; without it the name says so.
    """
    if name_or_lang in NORMALISERS:
        return NORMALISERS[name_or_lang].make(folder)
    lang = re.split("[-_]", name_or_lang.lower())[0] if name_or_lang else None
    row = next((row for row in NORMALISERS.values() if lang in row.langs), NORMALISERS["basic"])
    return row.make(folder)


@cache
def own_normaliser(spec: str) -> Normaliser:
    """`package.module:NAME`: a function of a text that gives its words, or a `Normaliser`. Raises UserError where it is neither."""
    found = load_named(spec, FLAG)
    if isinstance(found, Normaliser):
        return replace(found, name=spec)
    return Normaliser(spec, load_function(spec, FLAG, "def fold(text: str) -> str"))


def basic(text: str) -> str:
    """NFC, lower case, punctuation other than apostrophes between letters gone, single spaces."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'")
    kept = [
        char if char.isalnum() or char.isspace() or (char == "'" and _between_letters(text, place)) else " "
        for place, char in enumerate(text)
    ]
    return " ".join("".join(kept).lower().split())


def _between_letters(text: str, place: int) -> bool:
    return 0 < place < len(text) - 1 and text[place - 1].isalpha() and text[place + 1].isalpha()


def zh_char(text: str) -> str:
    """NFKC, every Han character a word, the rest as `basic`: runs of other letters and digits are words."""
    return basic(HAN.sub(r" \1 ", unicodedata.normalize("NFKC", text)))


def _spelt(text: str, read: Callable[[str], str]) -> str:
    return spelt(basic(THOUSANDS.sub("", text)), read)


BASIC = Normaliser("basic", basic)
ZH_CHAR = Normaliser("zh-char", zh_char, has_spaces=False)
SPELT_ENGLISH = Normaliser(
    "spelt-en", lambda text: _spelt(text, as_number), otherwise=lambda text: _spelt(text, digit_by_digit)
)


@cache
def _whisper_english(folder: Path | None) -> Normaliser:
    """Whisper's normaliser of English (Radford et al. 2022, appendix C), as `transformers` has it.

    Contractions are spelt out, numbers written in digits: "three one four" becomes the one word "314".
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spelling = _spelling(folder / SPELLING) if folder is not None and (folder / SPELLING).is_file() else {}
    whisper = EnglishTextNormalizer(spelling)
    name = "whisper-en" if spelling else "whisper-en (no spelling table)"
    return Normaliser(name, lambda text: " ".join(whisper(text).split()))


def _spelling(path: Path) -> dict[str, str]:
    try:
        return {str(word): str(form) for word, form in json.loads(path.read_text(encoding="utf8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no table of spellings ({error}); copy it again, or remove it") from error


@dataclass(frozen=True)
class NormaliserRow:
    """A normaliser by name."""

    make: Callable[[Path | None], Normaliser]
    """Of the folder where Whisper's spelling table may be."""
    langs: frozenset[str] = frozenset()
    """Languages that take it where nobody says otherwise."""


NORMALISERS = {
    "basic": NormaliserRow(lambda folder: BASIC),
    "spelt-en": NormaliserRow(lambda folder: SPELT_ENGLISH),
    "whisper-en": NormaliserRow(_whisper_english, frozenset({"en", "eng", "english"})),
    "zh-char": NormaliserRow(
        lambda folder: ZH_CHAR, frozenset({"zh", "zho", "chi", "cmn", "yue", "chinese", "mandarin", "cantonese"})
    ),
}
