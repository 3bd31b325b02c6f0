"""Settings on the command line of train.py, also as other trainers would write them."""

import sys

import pytest

from ttt_dist.train import parse_arguments


def overrides(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    return parse_arguments().overrides


def test_dashes_before_a_setting_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--train.lr=1e-4", "--config", "a.yaml", "seed=3", "--train.lr=2e-4", "--dry-run", "--seed=4", "run_dir=x"]
    assert overrides(monkeypatch, *words) == ["train.lr=1e-4", "seed=3", "train.lr=2e-4", "seed=4", "run_dir=x"]


@pytest.mark.parametrize(
    ("word", "how"),
    [
        ("--train.lr", "as in train.lr=VALUE"),
        ("--seed", "as in seed=VALUE"),
        ("--lr", "as in train.lr=VALUE; unknown key `lr`; did you mean `train.lr`?"),
        ("--learning-rate", "as in train.lr=VALUE; unknown key `learning-rate`; did you mean `train.lr`?"),
        ("--max_steps", "did you mean `train.steps`?"),
    ],
)
def test_a_value_in_a_word_of_its_own_is_told_how_to_write_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, how: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        overrides(monkeypatch, "--config", "a.yaml", word, "1e-4")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"{word}: no such option; settings are one word without dashes, " in said and how in said
