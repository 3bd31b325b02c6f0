"""A real Whisper hears real words: the converted weights are those of the published network, and its text is scored as speech."""

import json
import struct
import sys
from pathlib import Path

import pytest
import torch

from tests.evaluated import FEW, make_workplace, write_lines
from tests.real_judge import make_real_whisper
from tests.structures import SHARED, needs_shared
from ttt_dist import evaluate
from ttt_dist.audio import load_utterance
from ttt_dist.evaluation.metrics.error_rates import Score
from ttt_dist.evaluation.metrics.normalise import normaliser
from ttt_dist.evaluation.recognisers import Whisper
from ttt_dist.model.screen import Screen
from ttt_dist.model.tiles import Tiles
from ttt_dist.tools import make_judge
from ttt_dist.util.errors import UserError

pytestmark = pytest.mark.slow

SPEECH = Path(__file__).resolve().parents[2] / "demo_speech"
DIGITS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "eight": "8", "nine": "9"}


@pytest.fixture(scope="module")
def real_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_real_whisper(tmp_path_factory.mktemp("real-whisper"))


def spoken(folder: Path, name: str, as_written: dict[str, str]) -> dict[str, torch.Tensor]:
    """Text -> recordings of its words, joined as those of training are."""
    found = {}
    for words in ("three one four", "nine six two", "five eight one"):
        audio = [name.format(as_written.get(word, word)) for word in words.split()]
        found[words] = load_utterance({"audio": audio, "gaps": [0.1, 0.15, 0.15], "tail": 0.3}, folder, 16000)
    return found


def heard(judge: Whisper, utterances: dict[str, torch.Tensor]) -> Score:
    texts = judge.transcribe(list(utterances.values()), [None] * len(utterances))
    pairs = zip(utterances, texts, strict=True)
    return sum((Score.of(wanted, text, normaliser("spelt-en"), most=2) for wanted, text in pairs), Score())


def test_it_hears_the_words_of_the_shipped_recordings(real_whisper: Path) -> None:
    assert heard(Whisper(real_whisper), spoken(SPEECH, "{}_clara_4.flac", {})).words.edits <= 2


@needs_shared
def test_it_hears_the_words_of_a_person(real_whisper: Path) -> None:
    words = spoken(SHARED / "fsdd" / "recordings", "{}_jackson_17.wav", DIGITS)
    assert heard(Whisper(real_whisper), words).words.edits <= 1


def test_the_likeliest_words_of_a_real_head_are_found_without_its_logits(real_whisper: Path) -> None:
    judge = Whisper(real_whisper)
    states = []
    judge.model.proj_out.register_forward_pre_hook(lambda _, given: states.append(given[0].flatten(0, 1)))
    judge.transcribe(list(spoken(SPEECH, "{}_clara_4.flac", {}).values()), [None] * 3)
    hidden, weight = torch.cat(states).float(), judge.model.proj_out.weight.detach().float().clone()
    wanted = (hidden.double() @ weight.double().T).argmax(1)
    found = Screen(Tiles(weight)).likeliest(hidden, slice(0, len(weight)), torch.empty(0).long())
    assert len(wanted) > 10 and found.tolist() == wanted.tolist()


def test_weights_are_those_of_the_file(real_whisper: Path) -> None:
    judge = Whisper(real_whisper)
    weights = judge.model.state_dict()
    assert sum(weight.numel() for weight in judge.model.parameters()) == 37_760_256  # tiny.en, as published
    assert torch.equal(weights["proj_out.weight"], weights["model.decoder.embed_tokens.weight"])
    rows = weights["model.encoder.embed_positions.weight"]
    angle = torch.arange(1500)[:, None] * torch.exp(-torch.arange(192) * (torch.log(torch.tensor(10000.0)) / 191))
    sinusoids = torch.cat(
        [angle.sin(), angle.cos()], dim=1
    )  # Radford et al. 2022: fixed, so they tell right from wrong
    assert torch.allclose(rows, sinusoids, atol=2e-3)


def test_an_evaluation_takes_it_beside_the_models_own_ears(
    real_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = make_workplace(tmp_path / "work", num_recordings=2)
    names = [f"{word}_clara_4.flac" for word in ("three", "one", "four")]
    line = {"id": "clara", "audio": names, "gaps": [0.1, 0.15, 0.15], "tail": 0.3, "text": "three one four"}
    data, out = write_lines(workplace / "words.jsonl", [line]), tmp_path / "out"
    judges = ["--judge", "model", "--judge", f"whisper:{real_whisper}", "--normaliser", "spelt-en"]
    where = ["--model", workplace / "model", "--data", data, "--out", out, "--task", "tts", "--audio-root", SPEECH]
    monkeypatch.chdir(SPEECH)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, [*where, *judges, *FEW])])
    monkeypatch.setattr(sys, "path", list(sys.path))
    evaluate.main()
    judged = json.loads((out / "tts_summary.json").read_text())["judges"]
    assert (judged["model"]["own_ears"], judged["whisper"]["own_ears"]) == (True, False)
    assert judged["whisper"]["recording"]["value"] <= 1 / 3 < judged["whisper"]["speech"]["value"]


def test_what_is_no_such_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, said in ((b"", "cannot be read"), (b"\x06\0\0\0\x02\0A\0\x03\0\0\0", "is A 6, not WhisperSpec 6")):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(UserError, match=f"model.bin: {said}") as caught:
            make_judge.read_arrays(tmp_path / "model.bin")
        assert "\n" not in str(caught.value)
    header = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<IIH", 3, 1, 2) + b"a\0"
    (tmp_path / "model.bin").write_bytes(header + struct.pack("<BIIBI", 2, 1, 2, 4, 4) + b"\0\x3c\0\xc0")
    assert make_judge.read_arrays(tmp_path / "model.bin")["a"].tolist() == [[1.0, -2.0]]
    monkeypatch.setattr(make_judge, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="no_such_package: is not installed; pip install"):
        make_judge.installed()
