"""Scores of answers, captions and labels against references: what an item adds, and the corpus value of many items.

Corpus values are made of the items' parts alone, so it does not matter how the items were split over processes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ttt_dist.evaluation.metrics.normalise import Normaliser, normaliser, scored_language

MAX_NGRAM = 4
TOKENIZERS = {"zh-char": "zh", "char": "char"}  # of BLEU, by the normaliser
SIGMA = 6.0  # of CIDEr-D's penalty, in words
Gram = tuple[str, ...]


def contains_reference(answer: str, references: Sequence[str], normaliser: Normaliser) -> bool:
    """Whether one of the accepted answers occurs in the answer, as whole words, both normalised.

    An accepted answer of which the normaliser leaves nothing is in no answer.
    """
    pairs = (normaliser.pair(reference, answer) for reference in references)
    return any(wanted and f" {wanted} " in f" {given} " for wanted, (given, *_) in pairs)


def bleu_counts(hypothesis: str, references: Sequence[str], lang: str | None = None) -> list[int]:
    """What an item adds to BLEU (Papineni et al. 2002): hypothesis and reference length, matches 1..4, n-grams 1..4.

    By sacrebleu, without case, tokenised for the language (`bleu_name`), or for the writing of the references; of several
    references the closest length counts.
    """
    found = _bleu(bleu_tokenizer(lang, references)).sentence_score(hypothesis, list(references))
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def bleu(sums: np.ndarray, order: int = MAX_NGRAM) -> np.ndarray:
    """Summed `bleu_counts` [R, 10] -> BLEU [R] of each, 0..100; exponential smoothing where a count is zero.

    `order`: the longest n-grams that count.
    """
    from sacrebleu.metrics import BLEU

    rows = [[int(count) for count in row] for row in sums]
    scores = [
        BLEU.compute_bleu(row[2 : 2 + order], row[6 : 6 + order], row[0], row[1], "exp", max_ngram_order=order).score
        for row in rows
    ]
    return np.array([min(score, 100.0) for score in scores])


def bleu_order(longest: int) -> int:
    """The longest n-grams that references of so many words have: with 4 of them, three words said rightly would score 0."""
    return min(max(longest, 1), MAX_NGRAM)


def bleu_length(references: Sequence[str], lang: str | None = None) -> int:
    """Words of the longest reference, as BLEU counts them."""
    found = _bleu(bleu_tokenizer(lang, references))
    return max((found.sentence_score(text, [text]).sys_len for text in references), default=0)


def bleu_name(lang: str | None = None, references: Sequence[str] = (), order: int = MAX_NGRAM) -> str:
    """What the figure was made by, for the record."""
    import sacrebleu

    shorter = f", order:{order}" if order < MAX_NGRAM else ""
    tokenizer = bleu_tokenizer(lang, references)
    return f"BLEU, sacrebleu {sacrebleu.__version__}, case:lc, tok:{tokenizer}, smooth:exp{shorter}"


def bleu_tokenizer(lang: str | None, references: Sequence[str] = ()) -> str:
    """sacrebleu's: `zh` of Chinese, `char` of other writing without spaces between words, else `13a`."""
    return TOKENIZERS.get(normaliser(scored_language(lang, references)).name, "13a")


@cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, tokenize=tokenizer, effective_order=True)  # of one sentence; its counts are the same


def rouge_l(hypothesis: str, references: Sequence[str], normaliser: Normaliser) -> float:
    """ROUGE-L F1 (Lin 2004) of the normalised words, 0..1, by rouge-score; the best of several references."""
    return float(_rouge(normaliser).score_multi(list(references), hypothesis)["rougeL"].fmeasure)


@cache
def _rouge(normaliser: Normaliser) -> Any:
    from rouge_score import rouge_scorer, tokenizers

    class Words(tokenizers.Tokenizer):
        """The package's own tokenizer drops all but Latin letters."""

        def tokenize(self, text: str) -> list[str]:
            return normaliser.words(text)

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())


def cider_d(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], normalisers: Sequence[Normaliser]
) -> list[float]:
    """CIDEr-D of each item, 0..10 (Vedantam et al. 2015, section 6); the corpus value is their mean.

    n-grams of 1 to 4 words weigh tf-idf, an item's references being one document; matches are clipped, a difference in
    length is penalised. As the authors' scorer does, tf is the count itself. One item alone scores 0: its n-grams
    occur in every document.
    """
    texts = zip(hypotheses, references, normalisers, strict=True)
    counted = [(_Grams.of(hyp, norm), [_Grams.of(ref, norm) for ref in refs]) for hyp, refs, norm in texts]
    documents = Counter(gram for _, refs in counted for gram in set().union(*(ref.counts for ref in refs)))
    idf = _Idf(math.log(max(len(counted), 1)), documents)
    return [_cider_item(hyp, refs, idf) for hyp, refs in counted]


@dataclass(frozen=True)
class _Grams:
    """The n-grams of a text, 1 to 4 words long, and its number of words."""

    counts: Counter[Gram]
    length: int

    @classmethod
    def of(cls, text: str, normaliser: Normaliser) -> "_Grams":
        words = normaliser.words(text)
        spans = ((start, start + n) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1))
        return cls(Counter(tuple(words[start:end]) for start, end in spans), len(words))


@dataclass(frozen=True)
class _Idf:
    log_items: float
    documents: Counter[Gram]

    def vectors(self, grams: _Grams) -> list[dict[Gram, float]]:
        """tf-idf of the n-grams, a vector for each n."""
        weights: list[dict[Gram, float]] = [{} for _ in range(MAX_NGRAM)]
        for gram, count in grams.counts.items():
            weights[len(gram) - 1][gram] = count * (self.log_items - math.log(max(self.documents[gram], 1)))
        return weights


def _cider_item(hypothesis: _Grams, references: Sequence[_Grams], idf: _Idf) -> float:
    given, total = idf.vectors(hypothesis), 0.0
    for reference in references:
        penalty = math.exp(-((hypothesis.length - reference.length) ** 2) / (2 * SIGMA**2))
        pairs = zip(given, idf.vectors(reference), strict=True)
        total += penalty * sum(_clipped_cosine(ours, theirs) for ours, theirs in pairs) / MAX_NGRAM
    return 10 * total / len(references) if references else 0.0


def _clipped_cosine(ours: dict[Gram, float], theirs: dict[Gram, float]) -> float:
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    matched = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
    return matched / norms if norms else 0.0


def find_label(answer: str, labels: Sequence[str], normaliser: Normaliser) -> str | None:
    """The known label that the answer is: to the letter, else both normalised; None where it is none of them, or may be two."""
    if answer.strip() in labels:
        return answer.strip()
    pairs = ((label, *normaliser.pair(label, answer)) for label in labels)
    found = [label for label, wanted, (given, *_) in pairs if wanted and wanted == given]
    return found[0] if len(found) == 1 else None


def class_values(truth: str, given: str | None, labels: Sequence[str]) -> list[int]:
    """What an item adds to a classification, [3 C]: for each label whether it has it, was given it, and both."""
    assert truth in labels, "the truth of an item is one of the labels"
    has, told = ([label == one for label in labels] for one in (truth, given))
    return [*map(int, has), *map(int, told), *(int(a and b) for a, b in zip(has, told, strict=True))]


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Summed `class_values` [R, 3 C] -> mean F1 [R] over the labels that some item has or was given; NaN without any."""
    has, told, right = np.split(sums, 3, axis=1)
    f1 = 2 * right / np.maximum(has + told, 1)
    with np.errstate(invalid="ignore"):
        return f1.sum(axis=1) / (has + told > 0).sum(axis=1)


def classification(truths: Sequence[str], given: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy and macro F1, 0..1, and the counts of every label, of at least one item.

    None among `given` is an answer outside the labels: wrong.
    """
    values = [class_values(truth, told, labels) for truth, told in zip(truths, given, strict=True)]
    sums = np.array(values).sum(axis=0)
    has, told, right = (part.tolist() for part in np.split(sums, 3))
    names = ("num_true", "num_given", "num_right")
    return {
        "accuracy": round(sum(right) / len(truths), 6),
        "macro_f1": round(float(macro_f1(sums[None])[0]), 6),
        "outside_labels": list(given).count(None),
        "classes": {
            label: dict(zip(names, counts, strict=True))
            for label, *counts in zip(labels, has, told, right, strict=True)
        },
    }
