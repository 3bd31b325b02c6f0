"""Recordings of several channels: the mean of all, or the one that an entry names; `manifest --channel`, to the encoder's ears."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from data_prep.__main__ import main
from ttt_dist.audio.io import UtteranceReader, num_channels, read_audio
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import parse_line
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.errors import UserError

RATE = 8000
LEFT, RIGHT = 0.5, -0.25  # constant, so that a mean is told from either


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    for name in ("hello_ann_1", "bye_bo_2"):
        both = np.tile(np.float32([LEFT, RIGHT]), (RATE, 1))
        soundfile.write(tmp_path / "calls" / f"{name}.wav", both, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "calls" / "mono_bo_3.wav", np.full(RATE, LEFT, np.float32), RATE, subtype="FLOAT")
    return tmp_path


def listed(corpus: Path, *flags: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = corpus / "out.jsonl"
    command = ["manifest", "--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav"]
    main([*command, "--source", str(corpus / "calls"), "--out", str(out), *flags])
    report = json.loads((corpus / "out.jsonl.report.json").read_text())
    return [entry for _, entry in read_manifest(out, Problems())], report


def level(corpus: Path, clip: Any) -> float:
    wave = UtteranceReader(corpus, RATE).read(clip)
    assert len(wave) == RATE
    return float(wave.mean())


def test_the_mean_is_the_default(corpus: Path) -> None:
    entries, report = listed(corpus)
    assert sorted(level(corpus, entry) for entry in entries) == [0.125, 0.125, LEFT]
    assert not any("channel" in entry for entry in entries)
    assert "channels" not in report["manifests"]["out.jsonl"]


@pytest.mark.parametrize(("side", "number", "value"), [("left", 0, LEFT), ("right", 1, RIGHT)])
def test_one_channel(corpus: Path, side: str, number: int, value: float) -> None:
    entries, report = listed(corpus, "--channel", side, "--max-errors", "1")
    assert {level(corpus, entry) for entry in entries} == {value} and {entry["channel"] for entry in entries} == {
        number
    }
    assert report["manifests"]["out.jsonl"]["channels"] == {
        str(number): {"lines": len(entries), "hours": round(len(entries) / 3600, 6)}
    }
    assert (
        ("no such channel" in report["errors"]) == (side == "right") == (len(entries) == 2)
    )  # a mono file has a left one


def test_each_channel_is_a_turn_of_its_speaker(corpus: Path) -> None:
    entries, report = listed(corpus, "--channel", "each", "--max-errors", "1")
    assert len(entries) == 2 and "1 channel, no right one" in report["errors"]["no such channel"]["places"][0]
    entry = next(entry for entry in entries if entry["text"] == "hello")
    assert "audio" not in entry and [turn["role"] for turn in entry["turns"]] == ["user", "assistant"]
    assert [turn["speaker"] for turn in entry["turns"]] == ["ann-left", "ann-right"]
    assert [level(corpus, clip) for clip in clips(entry)] == [LEFT, RIGHT]
    assert report["manifests"]["out.jsonl"]["channels"] == {"0+1": {"lines": 2, "hours": round(2 / 3600, 6)}}


def test_pieces_and_lists_have_channels_too(corpus: Path) -> None:
    path = corpus / "calls" / "hello_ann_1.wav"
    assert num_channels(path) == 2
    piece = read_audio(path, RATE, offset=0.25, duration=0.5, channel=1)
    assert torch.equal(piece, torch.full((RATE // 2,), RIGHT))
    reader, name = UtteranceReader(corpus, RATE), "calls/hello_ann_1.wav"
    means = [
        float(reader.read({"audio": name, **channel}).mean()) for channel in ({}, {"channel": 0}, {"channel": 1}, {})
    ]
    assert means == [0.125, LEFT, RIGHT, 0.125]  # of one cache
    assert float(reader.read({"audio": [name, name], "channel": 1}).mean()) == RIGHT
    with pytest.raises(UserError, match=r"hello_ann_1\.wav: has 2 channel\(s\), and no number 2"):
        reader.read({"audio": name, "channel": 2})


def test_segments_take_the_channel_of_their_entry_or_their_own() -> None:
    segments = [{"text": "a", "offset": 0.0}, {"text": "b", "offset": 1.0, "channel": 0}]
    assert [clip["channel"] for clip in clips({"audio": "x.wav", "channel": 1, "segments": segments})] == [1, 0]


@pytest.mark.parametrize("channel", ['"left"', "-1", "true", "1.0", "5000"])
def test_a_channel_is_a_number(channel: str) -> None:
    with pytest.raises(UserError, match=r"f:1: field 'channel' is .*; give its number, 0 for the left one"):
        parse_line(f'{{"audio": "a.wav", "text": "x", "channel": {channel}}}'.encode(), "f:1")


def test_the_same_channel_of_a_recording_is_told(corpus: Path) -> None:
    lines = [{"id": str(n), "audio": "calls/hello_ann_1.wav", "text": "x", "channel": n % 2} for n in range(3)]
    (corpus / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    main(["filter", "--manifest", str(corpus / "in.jsonl"), "--out", str(corpus / "kept.jsonl"), "--unique", "audio"])
    assert [entry["id"] for _, entry in read_manifest(corpus / "kept.jsonl", Problems())] == ["0", "1"]
