"""What build f7f6f4f wrote means the same to this one (tests/golden): shards verify, its model decodes and is scored as then."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tools.convert_checkpoint as convert
from data_prep.__main__ import main as data_prep
from tests.golden import commands
from ttt_dist import evaluate, generate

FILES = Path(commands.__file__).with_name("files")
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the golden files, which commands may write into."""
    return shutil.copytree(FILES, tmp_path_factory.mktemp("golden") / "files")


@pytest.fixture(autouse=True)
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in that copy, and leave sys.path as it is."""
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    main()


@pytest.mark.parametrize("name", commands.REQUESTS)
def test_an_export_decodes_to_the_same_tokens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(generate.main, monkeypatch, commands.request(name, tmp_path))
    assert commands.answer(capsys.readouterr().out, tmp_path) == EXPECTED["answers"][name]


@pytest.mark.parametrize(("name", "more"), [("asr", []), ("likelihood", ["--estimator", "bernoulli"])])
def test_an_evaluation_has_the_same_scores(
    name: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likelihood by the estimator that was the only one."""
    call(evaluate.main, monkeypatch, [*commands.evaluation(name, tmp_path), *more])
    found, expected = commands.scores(tmp_path, name), EXPECTED["evaluations"][name]
    assert found["heard"] == expected["heard"]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-5)  # they are rounded to six digits


def test_samples_are_of_the_same_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed draws other numbers than it did, but each transcript is about as frequent: four standard errors of a difference."""
    call(evaluate.main, monkeypatch, commands.evaluation("asr sampled", tmp_path))
    found = commands.scores(tmp_path, "asr sampled")["heard"]
    expected = EXPECTED["evaluations"]["asr sampled"]["heard"]
    num, most_likely = sum(expected.values()), list(expected)[:3]
    assert sum(found.values()) == num and expected[most_likely[0]] < 0.9 * num
    for text in most_likely:
        share = expected[text] / num
        assert abs(found.get(text, 0) / num - share) < 4 * (2 * share * (1 - share) / num) ** 0.5, text


def test_a_checkpoint_is_exported_as_it_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end could be committed anywhere; today's default is another, which that build's settings do not name."""
    words = ["export-hf", "--source", "run", "--out", str(tmp_path / "out")]
    call(convert.main, monkeypatch, words)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["ttt_decoding"]["ends"] == "any"


@pytest.mark.parametrize("prefix", ["shards/train", "shards/valid"])
def test_shards_are_sound(prefix: str) -> None:
    data_prep(["verify", prefix])
