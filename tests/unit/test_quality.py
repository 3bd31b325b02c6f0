"""Naturalness and voice by the networks of the extra `quality`, on the shipped recordings; and who is compared with whom."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.evaluated import FEW, line, make_workplace, write_lines
from ttt_dist import evaluate
from ttt_dist.audio import read_audio
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.quality import RATE, Quality, as_table, nearest, score_quality
from ttt_dist.util.errors import UserError

SPEECH = Path(__file__).resolve().parents[2] / "demo_speech"
needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("speechmos", "distillmos", "resemblyzer")),
    reason="the extra `quality` is not installed",
)


def item(name: str, speaker: str | None) -> Item:
    return Item(name, "", {"speaker": speaker} if speaker else {})


def test_a_voice_is_compared_with_the_speakers_next_recording() -> None:
    items = [item("a", "ann"), item("b", "bob"), item("c", "ann"), item("d", None), item("e", "ann"), item("f", None)]
    assert nearest(items) == {"a": "c", "c": "e", "e": "a"}


def test_means_by_hand() -> None:
    records = [
        {"id": "a", "quality": {"speech": {"dnsmos": 2.0}, "recording": {"dnsmos": 4.0, "speaker": 0.5}}},
        {"id": "b", "quality": {"recording": {"dnsmos": 3.0}}},
        {"id": "c"},
    ]
    scores = score_quality(records)
    assert {name: {source: found["value"] for source, found in by.items()} for name, by in scores.items()} == {
        "dnsmos": {"speech": 2.0, "recording": 3.5},
        "speaker": {"recording": 0.5},
    }
    table = as_table({"quality": scores})
    assert table[0] == ["mean of", "own speech", "recordings", "through the codec"]
    assert (
        table[1][0] == "DNSMOS" and table[1][1] == "2.00" and table[1][2].startswith("3.50 (") and table[1][3] == "none"
    )
    assert as_table({}) == []


@pytest.mark.parametrize("missing", ["speechmos", "distillmos", "resemblyzer"])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if find_spec("distillmos") is None:
        missing = "distillmos"  # the first that is asked for
    with pytest.raises(UserError, match=rf'--quality: {missing} is not installed; pip install -e "\.\[quality\]"'):
        Quality()


@needs_extra
def test_speech_is_told_from_noise_and_voices_from_each_other() -> None:
    quality = Quality()

    def words(speaker: str, take: int) -> torch.Tensor:
        names = [f"{word}_{speaker}_{take}.flac" for word in ("three", "one", "four", "nine", "six")]
        return torch.cat([read_audio(SPEECH / name, RATE) for name in names])

    ann, again, bob = words("alice", 1), words("alice", 6), words("bruno", 1)
    noise = torch.randn(len(ann), generator=torch.Generator().manual_seed(0)) * 0.1
    clear, noisy = quality.naturalness(ann), quality.naturalness(noise)
    assert all(clear[name] > noisy[name] + 0.5 for name in ("dnsmos", "distillmos"))
    voice = quality.voice(ann)
    assert voice @ quality.voice(again) > voice @ quality.voice(bob) + 0.1
    assert torch.isfinite(torch.as_tensor(quality.voice(torch.zeros(100)))).all()


@needs_extra
def test_an_evaluation_measures_speech_recordings_and_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workplace, out = make_workplace(tmp_path / "work", num_recordings=3), tmp_path / "out"
    data = write_lines(workplace / "data.jsonl", [line(0), line(1), line(2, speaker="bob")])
    where = ["--model", workplace / "model", "--data", data, "--out", out, "--task", "tts", "--quality"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, [*where, *FEW])])
    monkeypatch.setattr(sys, "path", list(sys.path))
    evaluate.main()
    scores = json.loads((out / "tts_summary.json").read_text())["quality"]
    assert set(scores) == {"dnsmos", "distillmos", "speaker"}
    for name, by_source in scores.items():
        assert {"recording", "codec"} <= set(by_source)
        assert by_source["recording"]["items"] == by_source["codec"]["items"] == (2 if name == "speaker" else 3)
    for end in ("_summary.md", ".html"):
        assert "DistillMOS" in (out / f"tts{end}").read_text()
