"""Word and character error rates, with what they are made of (edit counts by jiwer)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jiwer

from ttt_dist.evaluation.metrics.normalise import Normaliser


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
    def edits(self) -> int:
        """Words or characters that are wrong, missing or too many."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Edits per unit of reference; None where something was inserted but there is no reference."""
        if self.length == 0:
            return None if self.edits else 0.0
        return self.edits / self.length


@dataclass(frozen=True)
class Score:
    """Both counts of one utterance, or summed over many."""

    words: Counts = Counts()
    characters: Counts = Counts()
    normalisers: frozenset[str] = frozenset()
    """Names of those that the texts went through: one per language."""

    @classmethod
    def of(cls, reference: str, hypothesis: str, normaliser: Normaliser, most: float | None = None) -> "Score":
        """Of the texts as `compared` gives them. An empty reference counts all of the hypothesis as inserted."""
        wanted, heard = compared(reference, hypothesis, normaliser, most)
        characters = _by_character(normaliser.counted(wanted), normaliser.counted(heard))
        return cls(_by_word(wanted, heard), characters, frozenset([normaliser.name]))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Score":
        """Back from `to_dict`."""
        names = frozenset(filter(None, record["normaliser"].split(" + ")))
        return cls(Counts(**record["words"]), Counts(**record["characters"]), names)

    def __add__(self, other: "Score") -> "Score":
        return Score(self.words + other.words, self.characters + other.characters, self.normalisers | other.normalisers)

    def to_dict(self) -> dict[str, Any]:
        """Rates rounded to six digits, the counts, and the normalisers' names."""
        rates = {"wer": self.words.rate, "cer": self.characters.rate}
        rounded = {name: None if rate is None else round(rate, 6) for name, rate in rates.items()}
        counts = {"words": asdict(self.words), "characters": asdict(self.characters)}
        return rounded | counts | {"normaliser": " + ".join(sorted(self.normalisers))}


def compared(reference: str, hypothesis: str, normaliser: Normaliser, most: float | None = None) -> tuple[str, str]:
    """Both texts normalised: of the readings of the hypothesis, the one with the fewest errors.

    `most`: it is cut after so many words per word of the reference.
    """
    wanted, readings = normaliser.pair(reference, hypothesis)
    limit = None if most is None else int(most * len(wanted.split()))
    readings = [" ".join(text.split()[:limit]) for text in readings]
    return wanted, min(readings, key=lambda heard: _by_word(wanted, heard).edits)


def _by_word(wanted: str, heard: str) -> Counts:
    return _counts(jiwer.process_words(wanted, heard)) if wanted else Counts(insertions=len(heard.split()))


def _by_character(wanted: str, heard: str) -> Counts:
    return _counts(jiwer.process_characters(wanted, heard)) if wanted else Counts(insertions=len(heard))


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Counts:
    return Counts(output.hits, output.substitutions, output.deletions, output.insertions)
