"""verify, stats and show: what they print, and the picture of the mask."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from data_prep.commands import inspect_shards
from data_prep.pack_printer import readable
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend
from ttt_dist.telemetry.plots import COLOURS, _rgb, draw_mask, mask_colours
from ttt_dist.util.errors import UserError


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    tokenizer = train_sentencepiece([*words, "system\n", "user\n", "assistant\n"], folder / "tokenizer", 320)
    layout = extend(tokenizer, 32)
    template = ChatTemplate(tokenizer, layout, TemplateSettings(text_ratio=3, audio_ratio=10))
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "train", {"layout": layout.to_dict(), "seq_len": 512}) as writer:
        for number in range(3):
            codes = rng.integers(0, 32, 25 + number)
            writer.add([template.asr(codes, "one two three four five"), template.tts("six seven", codes)])
    return folder / "train"


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    inspect_shards.add_parser(parser.add_subparsers())
    args = parser.parse_args(words)
    args.func(args)


def test_verify_prints_a_line_per_problem(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("verify", str(prefix))
    assert "sound" in capsys.readouterr().out
    path = prefix.with_suffix(".bin")
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-4])
        with pytest.raises(UserError, match=r"1 problem\(s\)"):
            run("verify", str(prefix))
    finally:
        path.write_bytes(good)
    assert capsys.readouterr().out.startswith(f"{path}: {len(good) - 4} bytes")


def test_stats_count(prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("stats", str(prefix), "--plot", str(tmp_path / "packs.png"))
    told = capsys.readouterr().out
    assert "packs.png" in told and (tmp_path / "packs.png").read_bytes().startswith(b"\x89PNG")
    assert "3 packs of 512" in told
    assert "speech to text+speech: 3 samples" in told
    assert "text to text+speech: 3 samples" in told


def test_show_reads_like_the_pack(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", str(prefix), "--pack", "1")
    told = capsys.readouterr().out
    assert "2 samples" in told
    assert "sample 2:" in told
    assert '"<|im_start|>system' in told
    assert "26 codes" in told
    assert "six seven" in told
    for pack in ("3", "-1"):
        with pytest.raises(UserError, match=r"has packs 0\.\.2"):
            run("show", str(prefix), "--pack", pack)


def test_show_of_another_epoch_differs(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for epoch in ("0", "1", "0"):
        run("show", str(prefix), "--epoch", epoch)
        told.append(capsys.readouterr().out.partition("\n")[2])
    assert told[0] == told[2] != told[1]


def test_every_token_is_readable(prefix: Path) -> None:
    reader = ShardReader(prefix)
    tokenizer = inspect_shards.load_tokenizer(prefix.parent / "tokenizer")
    sample = reader[0][1]
    text = readable(sample.ids[~reader.layout.is_audio[sample.ids]], reader.layout, tokenizer)
    assert text.startswith("<|im_start|>system")
    assert text.endswith("six seven<|begin_of_quad|><|im_end|>")


@pytest.mark.parametrize("tokens", [None, "60"])
def test_the_mask_is_drawn(prefix: Path, tmp_path: Path, tokens: str | None) -> None:
    path = tmp_path / "deep" / "mask.png"
    run("show", str(prefix), "--mask", str(path), *(["--tokens", tokens] if tokens else []))
    picture = imread(path)
    assert min(picture.shape[:2]) > 800
    for colour in ("text to text", "audio to its span", "audio to earlier"):
        assert np.isclose(picture[..., :3], _rgb(COLOURS[colour]), atol=0.01).all(-1).mean() > 1e-4


def test_colours_follow_the_mask() -> None:
    """Two samples: text, audio of two tokens, text; then text alone; then padding."""
    sample_ids = np.array([1, 1, 1, 1, 2, 0])
    span_ids = np.array([0, 1, 1, 0, 0, 0])
    visible = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
    whole = np.zeros((6, 6), bool)
    whole[:4, :4] = visible
    whole[4, 4] = True
    names = {_rgb(colour): name for name, colour in COLOURS.items()}
    drawn = [[names[tuple(cell)] for cell in row] for row in mask_colours(whole, sample_ids, span_ids)]
    assert drawn[0] == ["text to text", "unseen", "unseen", "unseen", "outside", "outside"]
    assert drawn[1] == ["audio to earlier", "audio to its span", "audio to its span", "unseen", "outside", "outside"]
    assert drawn[3] == ["text to text", "text to audio", "text to audio", "text to text", "outside", "outside"]
    assert drawn[4] == ["outside"] * 4 + ["text to text", "outside"]
    assert drawn[5] == ["outside"] * 6


def test_a_pack_of_padding_and_a_pack_without_weights_can_be_drawn(tmp_path: Path) -> None:
    nothing = np.zeros(8, int)
    draw_mask(np.zeros((8, 8), bool), nothing, nothing, tmp_path / "empty.png")
    assert imread(tmp_path / "empty.png").shape[2] in (3, 4)
