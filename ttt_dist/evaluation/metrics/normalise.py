"""Normalisers: what two texts may differ in without an error being counted. Both sides of a score go through the same one.

A score bears its normaliser's name, because figures of different normalisers do not compare.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ttt_dist.evaluation.metrics.conventions import espnet, wenet, whisper_name
from ttt_dist.evaluation.metrics.folding import (
    APOSTROPHES,
    basic,
    by_character,
    joined_alike,
    persian,
    pointed_alike,
    turkic,
)
from ttt_dist.evaluation.metrics.languages import language, written_language
from ttt_dist.evaluation.metrics.spelling import THOUSANDS, as_number, digit_by_digit, spelt
from ttt_dist.util import json_files
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_function, load_named
from ttt_dist.util.spoken_numbers import digits_one_by_one, number_reader

FLAG = "--normaliser"
WHISPER = "whisper-en"
BY_LANGUAGE = {"whisper": whisper_name}
"""Conventions that have a normaliser for each language."""
SPELT_CHINESE = "spelt-zh"
SPELLING = "normalizer.json"  # beside the weights of a Whisper folder: British spellings and their American form
PACKAGES = {
    "whisper_normalizer": "normalizers/english.json",
    "whisper": "normalizers/english.json",
}  # which bring the same


@dataclass(frozen=True)
class Normaliser:
    """A text to its words, single spaces between them."""

    name: str
    function: Callable[[str], str]
    has_spaces: bool = True
    """Whether the spaces are the text's own, and so count as characters."""
    otherwise: Callable[[str], str] | None = None
    """Another way to read what was heard, as good as `function`."""
    lenient: bool = False
    """Whether vowel points and half-spaces may be left out (`alike`)."""

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

    def pair(self, reference: str, hypothesis: str) -> tuple[str, list[str]]:
        """The reference, and the readings of the hypothesis, without what one of them merely leaves unwritten."""
        if not self.lenient:
            return self(reference), self.readings(hypothesis)
        reference, hypothesis = joined_alike(reference, hypothesis)
        wanted = self(reference)
        pairs = [pointed_alike(wanted, heard) for heard in self.readings(hypothesis)]
        return pairs[0][0], [heard for _, heard in pairs]

    def counted(self, normalised: str) -> str:
        """The characters of a normalised text that count."""
        return normalised if self.has_spaces else normalised.replace(" ", "")


def normaliser(name_or_lang: str | None, folder: Path | None = None) -> Normaliser:
    """The normaliser of one of NORMALISERS, `whisper-en:TABLE`, or of a language: the row that has it, else basic.

    `folder` is where Whisper's spelling table is, if anywhere; without it the name says so.
    """
    name, _, table = (name_or_lang or "").partition(":")
    if name == WHISPER and table:
        return _whisper_english(spelling_file(table))
    if name_or_lang in NORMALISERS:
        return NORMALISERS[name_or_lang].make(folder)
    return (row_of(name_or_lang) or NORMALISERS["basic"]).make(folder)


def row_of(lang: str | None) -> "NormaliserRow | None":
    """The row of a language that has one of its own."""
    code = language(lang)
    return next((row for row in NORMALISERS.values() if code in row.langs), None)


def scored_language(lang: str | None, references: Iterable[str]) -> str | None:
    """The language that decides how texts are scored: `lang` where it has a row, else what the references are written in."""
    return lang if row_of(lang) else written_language(references) or lang


@cache
def own_normaliser(spec: str) -> Normaliser:
    """`package.module:NAME`: a function of a text that gives its words, or a `Normaliser`. Raises UserError where it is neither."""
    found = load_named(spec, FLAG)
    if isinstance(found, Normaliser):
        return replace(found, name=spec)
    return Normaliser(spec, load_function(spec, FLAG, "def fold(text: str) -> str"))


def _spelt(text: str, read: Callable[[str], str]) -> str:
    return spelt(basic(THOUSANDS.sub("", text)), read)


BASIC = Normaliser("basic", basic, lenient=True)
TURKIC = Normaliser("basic-tr", turkic)
PERSIAN = Normaliser("basic-fa", persian, lenient=True)
ESPNET = Normaliser("espnet", espnet)
WENET = Normaliser("wenet", wenet, has_spaces=False)
ZH_CHAR = Normaliser("zh-char", by_character, has_spaces=False)
CHAR = Normaliser("char", by_character, has_spaces=False)
SPELT_ENGLISH = Normaliser(
    "spelt-en", lambda text: _spelt(text, as_number), otherwise=lambda text: _spelt(text, digit_by_digit)
)


@cache
def _spelt_chinese() -> Normaliser:
    """Characters, numerals as they are read aloud. Raises UserError where the package for it is missing."""
    read = number_reader("zh", f"{FLAG} {SPELT_CHINESE}")
    return replace(
        ZH_CHAR,
        name=SPELT_CHINESE,
        function=lambda text: by_character(read(text)),
        otherwise=lambda text: by_character(digits_one_by_one(text)),
    )


@cache
def _whisper_basic(by_letter: bool) -> Normaliser:
    """Whisper's normaliser of other languages, as `transformers` has it."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    whisper = BasicTextNormalizer(split_letters=by_letter)
    name = "whisper-char" if by_letter else "whisper-basic"
    return Normaliser(name, lambda text: " ".join(whisper(text).split()), has_spaces=not by_letter)


def _whisper(folder: Path | None) -> Normaliser:
    """With the folder's table, else with the one that an installed package brings."""
    return _whisper_english(folder / SPELLING if folder is not None and (folder / SPELLING).is_file() else _installed())


@cache
def _installed() -> Path | None:
    for package, place in PACKAGES.items():
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (Path(folder) / place).is_file():
                return Path(folder) / place
    return None


def spelling_file(place: str) -> Path:
    """The table that `whisper-en:PLACE` names: the file, or a folder of Whisper. Raises UserError where there is none."""
    path = Path(place) / SPELLING if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise UserError(
            f"{FLAG} {WHISPER}:{place}: has no {SPELLING}; name a folder of Whisper that has it, or the file"
        )
    return path


@cache
def _whisper_english(table: Path | None) -> Normaliser:
    """Whisper's normaliser of English (Radford et al. 2022, appendix C), as `transformers` has it.

    Contractions are spelt out, numbers written in digits: "three one four" becomes the one word "314". Whisper's own
    knows contractions by the straight apostrophe only, so that the others become one here first.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spelling = _spelling(table) if table is not None else {}
    whisper = EnglishTextNormalizer(spelling)
    name = WHISPER if spelling else f"{WHISPER} (no spelling table)"
    return Normaliser(name, lambda text: " ".join(whisper(text.translate(APOSTROPHES)).split()))


def _spelling(path: Path) -> dict[str, str]:
    try:
        return {str(word): str(form) for word, form in json_files.parse(path.read_bytes()).items()}
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
    "basic-tr": NormaliserRow(lambda folder: TURKIC, frozenset({"tr", "az", "crh", "gag"})),
    "basic-fa": NormaliserRow(lambda folder: PERSIAN, frozenset({"fa", "ur"})),
    "spelt-en": NormaliserRow(lambda folder: SPELT_ENGLISH),
    SPELT_CHINESE: NormaliserRow(lambda folder: _spelt_chinese()),
    WHISPER: NormaliserRow(_whisper, frozenset({"en"})),
    "zh-char": NormaliserRow(lambda folder: ZH_CHAR, frozenset({"zh", "yue"})),
    "char": NormaliserRow(lambda folder: CHAR, frozenset({"ja", "th", "lo", "km", "my", "bo", "dz", "tai"})),
    "whisper-basic": NormaliserRow(lambda folder: _whisper_basic(by_letter=False)),
    "whisper-char": NormaliserRow(lambda folder: _whisper_basic(by_letter=True)),
    "espnet": NormaliserRow(lambda folder: ESPNET),
    "wenet": NormaliserRow(lambda folder: WENET),
}
