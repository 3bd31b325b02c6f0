"""The text rule `numbers`: digits as words, of entries in that language."""

from __future__ import annotations

import re

from data_prep.selection.text_functions import TextRule
from ttt_dist.util.spoken_numbers import number_reader

LANGUAGES = {"en": ("en",), "zh": ("zh", "cmn")}
"""First parts of the codes of a language."""


def numbers(lang: str) -> TextRule:
    """Numbers of entries in that language, or in none that is known. Raises UserError where the package is missing."""
    read = number_reader(lang, "numbers")

    def rule(text: str, of: str | None) -> str:
        is_ours = not of or re.split("[-_]", of.lower())[0] in LANGUAGES[lang]
        return read(text) if is_ours else text

    return rule
