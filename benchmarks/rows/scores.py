"""Row A9: scores of languages."""

from pathlib import Path

import numpy as np
from kit import main, module, row

METRICS = "ttt_dist.evaluation.metrics."


def wrong(lang: str | None, reference: str, heard: str) -> str:
    """Words wrong by the normaliser of a language."""
    rates = module(METRICS + "error_rates", "ttt_dist.evaluation.error_rates")
    kind = module(METRICS + "normalise", "ttt_dist.evaluation.normalise")
    pick = getattr(kind, "scored_language", None)
    chosen = kind.normaliser(pick(lang, [reference]) if pick else lang)
    words = rates.Score.of(reference, heard, chosen).words
    return f"{words.edits} of {words.length} wrong by {chosen.name}"


def score(row_: str, lang: str | None, what: str, reference: str, heard: str, want: str, tests: str) -> None:
    row(row_, what, want, tests)(lambda folder: wrong(lang, reference, heard))


A9 = "normalise::by_hand, error_rates::rates_of_a_language"
score("A9", "hi", "Hindi, one of two words differs in a vowel sign", "किताब पढ़ी", "किताब पढ़ा", "^1 of 2", A9)
score("A9", "ta", "Tamil, the same", "தமிழ் மொழி", "தமிழ் மொழு", "^1 of 2", A9)
score("A9", "yo", "Yoruba, a tone", "ọ̀rọ̀ kan", "ọ́rọ̀ kan", "^1 of 2", A9)
score("A9", "tr", "Turkish case", "İstanbul IŞIK", "istanbul ışık", "^0 of 2", A9)
score("A9", "uk", "Ukrainian apostrophes", "м’ята", "мʼята", "^0 of 1", A9)
score("A9", "fa", "Persian half-spaces", "می\u200cروم خانه", "میروم خانه", "^0 of 2", A9)
score("A9", "Mandarin Chinese", "Chinese by the name of Fleurs", "今天天气", "今天天汽", "^1 of 4", A9)
score("A9", None, "Chinese without `lang`", "今天天气", "今天天汽", "^1 of 4", A9)
score("A9", "ja", "Japanese", "今日はいい天気", "今日はいい天機", "^1 of 7", A9)
score("A9", "th", "Thai", "สวัสดีครับ", "สวัสดีค่ะ", "^[1-9] of [5-9]", A9)


def perfect(texts: list[str], lang: str | None) -> str:
    """BLEU of a corpus of captions that are their references."""
    scores = module(METRICS + "text_scores", "ttt_dist.evaluation.text_scores")
    sums = np.array([[scores.bleu_counts(text, [text], lang) for text in texts]]).sum(1)
    length = getattr(scores, "bleu_length", None)
    order = (scores.bleu_order(max(length([text], lang) for text in texts)),) if length else ()
    return f"BLEU {scores.bleu(sums, *order)[0]:.1f}"


@row("A9", "BLEU of perfect captions in Japanese", "^BLEU 100", "text_scores::perfect_captions_score_100")
def japanese(folder: Path) -> str:
    return perfect(["犬が吠えている", "雨が降っている"], "ja")


@row("A9", "BLEU of perfect captions of two words", "^BLEU 100", "text_scores::perfect_captions_score_100")
def short(folder: Path) -> str:
    return perfect(["dog barks", "rain falls"], "en")


if __name__ == "__main__":
    main()
