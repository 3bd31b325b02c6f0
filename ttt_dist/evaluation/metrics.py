"""Word and character error rates, with what they are made of (edit counts by jiwer)."""

from dataclasses import dataclass
from typing import Any

import jiwer

NORMALISER = "lower case, no punctuation"


@dataclass(frozen=True)
class Counts:
    """Edits that turn references into hypotheses, in words or characters. Counts add up; rates do not."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def length(self) -> int:
        """Words or characters of the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float | None:
        """Edits per unit of reference; None where something was inserted but there is no reference."""
        edits = self.substitutions + self.deletions + self.insertions
        if self.length == 0:
            return None if edits else 0.0
        return edits / self.length

    def to_dict(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
        }


def normalise(text: str) -> str:
    """Lower case, punctuation other than apostrophes between letters gone, single spaces."""
    kept = [
        char if char.isalnum() or char.isspace() or (char == "'" and _between_letters(text, place)) else " "
        for place, char in enumerate(text)
    ]
    return " ".join("".join(kept).lower().split())


def _between_letters(text: str, place: int) -> bool:
    return 0 < place < len(text) - 1 and text[place - 1].isalpha() and text[place + 1].isalpha()


def word_counts(reference: str, hypothesis: str) -> Counts:
    """Edits in words between normalised texts; an empty reference counts every word of the hypothesis as inserted."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return Counts(insertions=len(hypothesis.split()))
    return _counts(jiwer.process_words(reference, hypothesis))


def character_counts(reference: str, hypothesis: str) -> Counts:
    """Edits in characters between normalised texts, spaces included."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return Counts(insertions=len(hypothesis))
    return _counts(jiwer.process_characters(reference, hypothesis))


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Counts:
    return Counts(output.hits, output.substitutions, output.deletions, output.insertions)


@dataclass(frozen=True)
class Score:
    """Both counts of one utterance, or summed over many."""

    words: Counts = Counts()
    characters: Counts = Counts()

    @classmethod
    def of(cls, reference: str, hypothesis: str) -> "Score":
        return cls(word_counts(reference, hypothesis), character_counts(reference, hypothesis))

    def __add__(self, other: "Score") -> "Score":
        return Score(self.words + other.words, self.characters + other.characters)

    def to_dict(self) -> dict[str, Any]:
        """Rates rounded to six digits, and the counts."""
        rates = {"wer": self.words.rate, "cer": self.characters.rate}
        rounded = {name: None if rate is None else round(rate, 6) for name, rate in rates.items()}
        return rounded | {"words": self.words.to_dict(), "characters": self.characters.to_dict()}
