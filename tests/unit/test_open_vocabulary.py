"""The open-vocabulary benchmark: its sentences; and its three steps as a toy, of the demo's words, on the CPU."""

import json
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.open_vocabulary.__main__ import VARIANTS, main, table, word_errors
from benchmarks.open_vocabulary.grammar import plural, sentences
from tests.real_judge import make_real_whisper


def test_sentences_differ_and_a_longer_list_begins_as_a_shorter_one() -> None:
    texts = list(sentences(3000, 1))
    assert len(set(texts)) == 3000
    assert list(islice(sentences(5000, 1), 100)) == texts[:100] != list(sentences(100, 2))
    assert all(text.replace(" ", "").isalpha() and text.islower() for text in texts)
    assert all(5 <= len(text.split()) <= 25 for text in texts)


def test_plurals() -> None:
    nouns = {
        "fox": "foxes",
        "lady": "ladies",
        "donkey": "donkeys",
        "woman": "women",
        "potato": "potatoes",
        "sheep": "sheep",
    }
    assert {noun: plural(noun) for noun in nouns} == nouns


def test_word_errors_by_hand() -> None:
    assert word_errors([("two red foxes", "2 red boxes"), ("the end", "the the the the the the")], "spelt-en") == 0.8


@pytest.mark.slow
def test_all_steps_as_a_toy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge, out = make_real_whisper(tmp_path / "judge"), tmp_path / "result.md"
    monkeypatch.delitem(VARIANTS, "paper")  # two go the way of three
    for step, more in {"prepare": [], "run": [], "hear": ["--judge", str(judge), "--out", str(out)]}.items():
        monkeypatch.setattr(sys, "argv", ["open_vocabulary", step, "--work", str(tmp_path), "--toy", *more])
        main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {"recordings", "codec", *VARIANTS}
    assert figures["recordings"]["wer_whisper"] < 1
    assert set(figures["ttt"]) == {"wer_whisper", "asr_wer", "wer_own_ears"}
    rows = 2 + len(figures)  # the table of the result file; above it stands by which command it was made
    assert out.read_text(encoding="utf8").splitlines()[-rows:] == table(figures)[-rows:]
