"""Scores of texts against values worked by hand, against the packages' own corpus values, and by brute force."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_dist.evaluation.metrics.normalise import normaliser
from ttt_dist.evaluation.metrics.scores import Figure, Normalisers, error_rates
from ttt_dist.evaluation.metrics.text_scores import (
    bleu,
    bleu_counts,
    bleu_name,
    cider_d,
    class_values,
    classification,
    contains_reference,
    find_label,
    macro_f1,
    rouge_l,
)
from ttt_dist.evaluation.tasks.captioning_classification import score_captions

BASIC, CHINESE, ENGLISH = normaliser("basic"), normaliser("zh"), normaliser("en")
SENTENCES = st.lists(st.sampled_from(["a", "dog", "barks", "loud", "rain"]), max_size=8).map(" ".join)
ITEMS = st.lists(st.tuples(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=3)), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("answer", "references", "norm", "wanted"),
    [
        ("I think it is Paris.", ["paris"], BASIC, True),
        ("I went to a party", ["art"], BASIC, False),  # whole words only
        ("The United  States!", ["USA", "united states"], BASIC, True),
        ("states united", ["united states"], BASIC, False),
        ("", ["paris"], BASIC, False),
        ("paris", [], BASIC, False),
        ("paris", ["?!", ""], BASIC, False),
        ("There are twenty one", ["21"], ENGLISH, True),
        ("首都是北京。", ["北京"], CHINESE, True),
        ("首都是北", ["北京"], CHINESE, False),
        ("यह की है", ["का"], BASIC, False),
        ("הוא אמר שָׁלוֹם", ["שלום"], BASIC, True),
    ],
)
def test_a_reference_is_contained(answer: str, references: list[str], norm, wanted: bool) -> None:  # noqa: ANN001
    assert contains_reference(answer, references, norm) is wanted


@pytest.mark.parametrize(
    ("hypothesis", "references", "lang", "wanted"),
    [
        ("A dog barks", ["a dog barks loudly", "the dog"], None, [3, 2, 3, 2, 1, 0, 3, 2, 1, 0]),
        ("the the the", ["the cat"], "en", [3, 2, 1, 0, 0, 0, 3, 2, 1, 0]),  # a match counts once
        ("a dog.", ["a dog."], "en", [3, 3, 3, 2, 1, 0, 3, 2, 1, 0]),  # the full stop is a word
        ("狗叫了", ["狗在叫"], "zh-CN", [3, 3, 2, 0, 0, 0, 3, 2, 1, 0]),
        ("", ["a dog"], None, [0, 2, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("犬がいる", ["犬がいる"], None, [4, 4, 4, 3, 2, 1, 4, 3, 2, 1]),
        ("ฝนตก", ["ฝนตก"], "th", [4, 4, 4, 3, 2, 1, 4, 3, 2, 1]),
    ],
)
def test_bleu_counts_by_hand(hypothesis: str, references: list[str], lang: str | None, wanted: list[int]) -> None:
    assert bleu_counts(hypothesis, references, lang) == wanted


def test_bleu_by_hand() -> None:
    """Of 7 words, 6 pairs and so on all but two match; the hypothesis is a word shorter than the reference."""
    counts = [7, 8, 5, 4, 3, 2, 7, 6, 5, 4]
    precisions = 5 / 7 * 4 / 6 * 3 / 5 * 2 / 4
    assert bleu(np.array([counts])) == pytest.approx([100 * precisions**0.25 * math.exp(1 - 8 / 7)])
    assert bleu(np.array([[0] * 10, [4, 4, 4, 3, 2, 1, 4, 3, 2, 1]])).tolist() == [0, 100]
    assert "tok:zh" in bleu_name("zh") and "tok:13a" in bleu_name(None)


@given(ITEMS)
@settings(max_examples=50)
def test_the_sum_of_items_has_the_bleu_of_the_corpus(items: list[tuple[str, list[str]]]) -> None:
    hypotheses = [hypothesis for hypothesis, _ in items]
    streams = [[refs[n] if n < len(refs) else None for _, refs in items] for n in range(3)]
    wanted = sacrebleu.corpus_bleu(hypotheses, streams, lowercase=True).score
    found = bleu(np.sum([bleu_counts(*item) for item in items], axis=0)[None])
    assert found == pytest.approx([wanted])


@pytest.mark.parametrize(
    ("hypothesis", "references", "norm", "wanted"),
    [
        ("a dog barks", ["a dog barks"], BASIC, 1.0),
        ("A dog!", ["a big dog barks"], BASIC, 2 * 1.0 * 0.5 / 1.5),
        ("a dog", ["rain", "a dog barks"], BASIC, 0.8),  # the best reference
        ("dog a", ["a dog"], BASIC, 0.5),
        ("今天好", ["今天很好"], CHINESE, 6 / 7),
        ("", ["a dog"], BASIC, 0.0),
        ("a dog", [""], BASIC, 0.0),
    ],
)
def test_rouge_by_hand(hypothesis: str, references: list[str], norm, wanted: float) -> None:  # noqa: ANN001
    assert rouge_l(hypothesis, references, norm) == pytest.approx(wanted)


def brute_force_cider_d(items: list[tuple[str, list[str]]]) -> list[float]:
    """Equations 1 to 4 of the paper with dense vectors over all n-grams, written without regard to speed."""

    def grams(text: str, n: int) -> list[str]:
        words = text.split()
        return [" ".join(words[i : i + n]) for i in range(len(words)) if i + n <= len(words)]

    def vector(text: str, vocabulary: list[str], n: int) -> np.ndarray:
        documents = [sum(any(gram in grams(ref, n) for ref in refs) for _, refs in items) for gram in vocabulary]
        idf = np.log(len(items) / np.maximum(documents, 1))
        return np.array([grams(text, n).count(gram) for gram in vocabulary]) * idf

    scores = []
    for hypothesis, references in items:
        values = []
        for n in (1, 2, 3, 4):
            vocabulary = sorted({gram for hyp, refs in items for text in [hyp, *refs] for gram in grams(text, n)})
            ours = vector(hypothesis, vocabulary, n)
            for reference in references:
                theirs = vector(reference, vocabulary, n)
                norms = np.linalg.norm(ours) * np.linalg.norm(theirs)
                difference = len(hypothesis.split()) - len(reference.split())
                clipped = np.minimum(ours, theirs) @ theirs / norms if norms else 0.0
                values.append(10 * clipped * np.exp(-(difference**2) / 72))
        scores.append(sum(values) / len(references) / 4)
    return scores


@given(ITEMS)
@settings(max_examples=100)
def test_cider_d_is_that_of_brute_force(items: list[tuple[str, list[str]]]) -> None:
    found = cider_d(*zip(*items, strict=True), [BASIC] * len(items))
    assert found == pytest.approx(brute_force_cider_d(items), abs=1e-9)


def test_cider_d_by_hand() -> None:
    """Two items. Of `a dog` all n-grams are in one of two documents; those of length 3 and 4 do not exist: half of 10.

    `rain rain` has one word of two in common with `rain falls`, which is counted twice and clipped to one:
    cosine 1 / (2 sqrt 2) of single words, nothing of pairs.
    """
    found = cider_d(["a dog", "rain rain"], [["a dog"], ["rain falls"]], [BASIC, BASIC])
    assert found == pytest.approx([5.0, 10 / 4 / (2 * math.sqrt(2))])
    (penalised, _) = cider_d(["a dog a dog a dog", ""], [["a dog"], ["rain"]], [BASIC, BASIC])
    (same_length, _) = cider_d(["a dog", ""], [["a dog"], ["rain"]], [BASIC, BASIC])
    assert penalised < same_length * math.exp(-(4**2) / 72)
    assert cider_d(["a dog"], [["a dog"]], [BASIC]) == [0.0]  # alone, it tells nothing
    assert cider_d([], [], []) == []
    assert cider_d(["狗 叫", "雨"], [["狗叫。"], ["下雨"]], [CHINESE] * 2)[0] == pytest.approx(5.0)


def test_an_answer_is_a_known_label_or_none() -> None:
    labels = ["Happy", "very sad"]
    assert [find_label(text, labels, BASIC) for text in ("happy.", "Very  sad", "sad", "")] == [
        "Happy",
        "very sad",
        None,
        None,
    ]


def test_labels_that_fold_alike_are_not_taken_for_each_other() -> None:
    labels = ["C", "C++", "का", "की", "😀"]
    answers = ("C++", "c#", "की", "का।", "", "😀", "?")
    assert [find_label(text, labels, BASIC) for text in answers] == ["C++", None, "की", "का", None, "😀", None]


def captions(*pairs: tuple[str, str], **more: str) -> dict[str, Figure]:
    records = [{"id": str(n), "hypothesis": hyp, "captions": [ref], **more} for n, (hyp, ref) in enumerate(pairs)]
    return score_captions(records, Normalisers()).figures


def test_perfect_captions_score_100_in_any_writing_and_however_short() -> None:
    for text in ("犬が大きな声で吠えている。", "สุนัขเห่าเสียงดัง", "狗在大声叫", "一条狗"):
        for lang in ({}, {"lang": "ja"}):
            assert captions((text, text), **lang)["bleu"].value == pytest.approx(100)
    short = captions(("dog barks", "a dog barks"), ("rain", "rain"), ("a cat purrs", "a cat purrs"))["bleu"]
    assert 0 < short.value < 100 and "order:3" in short.by
    assert captions(("rain", "rain"))["bleu"].value == pytest.approx(100)
    # The references decide how long: who says too little does not choose the measure.
    assert captions(("a dog barks", "a dog barks very loudly"))["bleu"].value == 0


def test_without_a_language_the_writing_decides_and_is_told() -> None:
    records = [{"id": "1", "reference": "今天很好", "hypothesis": "今天不好"}]
    figure = error_rates(records, Normalisers()).figures["wer"]
    assert (figure.value, figure.by) == (0.25, "zh-char (by its writing)")
    assert error_rates([records[0] | {"lang": "zh"}], Normalisers()).figures["wer"].by == "zh-char"
    assert error_rates(records, Normalisers("basic")).figures["wer"].by == "basic"
    (sentence,) = records
    assert error_rates([sentence | {"lang": "de"}], Normalisers()).figures["wer"].by == "zh-char (by its writing)"


def test_classification_by_hand() -> None:
    """a: 2 of 3 right and 3 given, F1 2/3; b: 1 of 2 right, 2 given, 1/2; c was given once, 0; d never occurs."""
    truths, given_ = list("aaabb"), ["a", "a", "b", "b", "a"]
    found = classification([*truths, "a"], [*given_, None], list("abcd"))
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == round((2 * 2 / (4 + 3) + 0.5) / 2, 6)
    assert found["outside_labels"] == 1
    assert found["classes"]["a"] == {"num_true": 4, "num_given": 3, "num_right": 2}
    assert found["classes"]["d"] == {"num_true": 0, "num_given": 0, "num_right": 0}
    with_c = classification(["a", "b"], ["a", "c"], list("abcd"))
    assert with_c["macro_f1"] == round(1 / 3, 6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", None])), min_size=1))
def test_f1_is_that_of_precision_and_recall(pairs: list[tuple[str, str | None]]) -> None:
    scores = []
    for label in "abc":
        right = sum(truth == told == label for truth, told in pairs)
        has, told = sum(truth == label for truth, _ in pairs), sum(answer == label for _, answer in pairs)
        if has or told:
            precision, recall = right / max(told, 1), right / max(has, 1)
            scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    sums = np.sum([class_values(truth, told, "abc") for truth, told in pairs], axis=0)
    assert macro_f1(np.stack([sums, 2 * sums])) == pytest.approx([np.mean(scores)] * 2)
