"""What build f7f6f4f wrote means the same to this one (tests/golden): shards verify, its model decodes and is scored as then."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ttt_dist.tools.convert_checkpoint as convert
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


def test_a_checkpoint_is_exported_as_it_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end could be committed anywhere; today's default is another, which that build's settings do not name."""
    words = ["export-hf", "--source", "run", "--out", str(tmp_path / "out")]
    call(convert.main, monkeypatch, words)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["ttt_decoding"]["ends"] == "any"


@pytest.mark.parametrize("prefix", ["shards/train", "shards/valid"])
def test_shards_are_sound(prefix: str) -> None:
    data_prep(["verify", prefix])
