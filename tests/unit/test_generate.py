"""generate.py: text and recordings in, text and speech out, whole chats."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from tests.evaluated import FEW, line, make_mute_model, make_workplace, read_lines, write_lines
from ttt_dist import generate
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Session
from ttt_dist.inference.limits import warn_of_limits
from ttt_dist.util.errors import UserError

Generate = Callable[..., str]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("work") / "w")


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """The command in this process; what it prints."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["generate.py", "--model", str(work / "model"), *FEW, *map(str, words)])
        generate.main()
        return capsys.readouterr().out

    return call


def seconds(path: Path) -> float:
    return soundfile.info(path).duration


def test_a_text_is_spoken(run: Generate, tmp_path: Path) -> None:
    told = run("--prompt", "one two", "--speaker", "ann", "--out", tmp_path / "a.wav").splitlines()
    assert told[-1] == f"{tmp_path / 'a.wav'}: {seconds(tmp_path / 'a.wav'):.2f} s"
    assert len(told) == 2  # the text before it
    run("--prompt", "one two", "--seed", "1", "--code-temperature", "1", "--out", tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "b.wav").read_bytes()


def test_without_a_name_the_commonest_speaker_speaks(
    run: Generate, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "told"
    shutil.copytree(work / "model", told)
    run("--prompt", "one two", "--out", tmp_path / "nobody.wav")
    (told / "speakers.json").write_text(json.dumps({"speakers": ["ann", *(f"s{number}" for number in range(20))]}))
    run("--model", told, "--prompt", "one two", "--speaker", "ann", "--out", tmp_path / "ann.wav")
    run("--model", told, "--prompt", "one two", "--out", tmp_path / "usual.wav")
    assert (tmp_path / "usual.wav").read_bytes() == (tmp_path / "ann.wav").read_bytes()
    assert generate.brief_list(["a", "b"], 1) == "a and 1 more"


def test_a_recording_is_transcribed_or_answered(run: Generate, work: Path, tmp_path: Path) -> None:
    assert len(run("--audio", work / "0.wav").splitlines()) == 1
    told = run("--audio", work / "0.wav", "--chat", "--out", tmp_path / "a.wav").splitlines()
    assert told[-1].startswith(f"{tmp_path / 'a.wav'}: ")
    assert seconds(tmp_path / "a.wav") > 0
    run("--prompt", "two", "--chat", "--out", tmp_path / "b.wav")
    assert seconds(tmp_path / "b.wav") > 0


def test_chats_are_answered_turn_by_turn(run: Generate, work: Path, tmp_path: Path) -> None:
    spoken = {"role": "user", "audio": "1.wav"}
    chats = [{"id": "a", "turns": [spoken, {"role": "user", "text": "two"}]}, {"id": "b", "turns": [spoken]}]
    data = write_lines(work / "chats.jsonl", [*chats, "broken", line(0, audio="missing.wav", text="x")])
    with pytest.raises(UserError, match=r"chats.jsonl: 2 chat\(s\) could not be answered"):
        run("--chats", data, "--out", tmp_path / "answers")
    answered = read_lines(tmp_path / "answers" / "answers.jsonl")
    assert [(chat["id"], len(chat["answers"])) for chat in answered] == [("a", 2), ("b", 1)]
    for chat in answered:
        assert all(seconds(tmp_path / "answers" / answer["wav"]) > 0 for answer in chat["answers"])
    assert answered[0]["answers"][1]["question"] == "two"
    write_lines(data, chats)
    assert "2 chats answered, 0 not" in run("--chats", data, "--out", tmp_path / "again")
    again = read_lines(tmp_path / "again" / "answers.jsonl")
    assert json.dumps(again) == json.dumps(answered)


def test_an_answer_that_a_limit_cut_off_is_told(
    run: Generate, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("ttt_dist.inference.limits.warn", told.append)
    run("--prompt", "one two", "--max-codes", "3", "--repeats", "drawn", "--out", tmp_path / "a.wav")
    assert told == ["1 of 1 responses did not end, a limit cut them off (max_codes 1): raise --max-codes"]
    told.clear()
    warn_of_limits(["max_length", "end_of_turn"], DecodeSettings(repeats="drawn"))  # which no flag raises
    assert told.pop().endswith("(max_length 1): the model takes no more tokens, so ask for less")
    chats = [{"id": "a", "turns": [{"role": "user", "text": "two"}, {"role": "user", "text": "one"}]}]
    run("--chats", write_lines(work / "two.jsonl", chats), "--max-codes", "3", "--out", tmp_path / "answers")
    finishes = [answer["finish"] for answer in read_lines(tmp_path / "answers" / "answers.jsonl")[0]["answers"]]
    cut = len(finishes) - finishes.count("end_of_turn")
    assert cut and told[0].startswith(f"{cut} of {len(finishes)} responses did not end, "), told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--audio", "b"], "not allowed with"),
        (["--prompt", "a", "--seed", "-1"], "--seed"),
        (["--prompt", "a", "--chat", "--speaker", "ann"], "--speaker names the voice of a text that is spoken"),
        (["--audio", "a", "--speaker", "ann"], "--speaker names the voice of a text that is spoken"),
        (["--chats", "a", "--chat"], "--chats: languages stand in its lines"),
        (["--audio", "a", "--decoder-command", "x {codes} {wav}"], "--audio alone makes text"),
        ([], "one of the arguments"),
    ],
)
def test_bad_usage(run: Generate, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--audio", "none.wav"], "none.wav"),
        (["--prompt", "one " * 40000], "the model takes 32768 with its response"),
        (["--prompt", "one", "--steps", "0"], "--steps"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Generate, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        run(*words)
    assert "\n" not in str(error.value)


def test_a_codec_without_decoder_is_refused_before_anything_is_generated(
    run: Generate, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was generated")

    monkeypatch.setattr(Session, "step", never)
    mute = ["--model", make_mute_model(work), "--out", tmp_path / "out.wav"]
    with pytest.raises(UserError, match="glm4voice: .*give --decoder-command"):
        run("--prompt", "two", *mute)
    assert list(tmp_path.iterdir()) == []
