"""`data_prep stats FILE.jsonl`: lengths, rates, languages and speakers, in figures and as a picture."""

import json
import math
from pathlib import Path

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.manifest_statistics import ManifestStatistics
from data_prep.packing.prediction import predicted_fill
from ttt_dist.util.errors import UserError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    entries = [
        {
            "audio": f"{i}.wav",
            "text": "x" * 10 * i,
            "duration": float(i),
            "lang": "en" if i < 4 else "de",
            "speaker": i % 2,
        }
        for i in range(1, 6)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_figures_and_picture(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "pictures" / "train.png"
    main(["stats", str(manifest), "--plot", str(plot)])
    told = capsys.readouterr().out
    assert "5 entries, 0.00 hours" in told
    assert "seconds                 1.00    1.04    3.00    4.96    5.00    3.00" in told
    assert "characters a second    10.00   10.00   10.00   10.00   10.00   10.00" in told
    assert "lang: 2 (de 0.00 h, en 0.00 h)" in told and "speaker: 2 (1 " in told
    picture = matplotlib.image.imread(plot)
    assert picture.shape[0] > 400 and picture.std() > 0.05


def test_entries_that_say_nothing_are_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text('{"audio": "a.wav", "text": "x"}\n{"turns": [{"role": "user", "text": "hi"}]}\n')
    main(["stats", str(path), "--plot", str(tmp_path / "bare.png")])
    told = capsys.readouterr().out
    assert "2 entries" in told and told.count("none") == 2 and "lang: 0\n" in told
    assert (tmp_path / "bare.png").stat().st_size > 1000


def test_bad_lines_and_other_files_are_told(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text() + "{\n")
    with pytest.raises(UserError, match="1 bad files or lines were left out.*the good ones were counted"):
        main(["stats", str(manifest)])
    with pytest.raises(SystemExit, match="2"):
        main(["stats", str(tmp_path / "shard"), "--codes-per-second", "25"])


def test_how_full_packs_will_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples of 512 tokens fill all packs; one of 1,100 is too long for the first."""
    known = {"text": "x" * 400, "duration": 16.0}  # 16 x 25 codes, 100 tokens of text, 12 of markup
    entries = [{"audio": f"{i}.wav", **known} for i in range(64)]
    entries += [{"audio": "long.wav", "text": "xxxx", "num_codes": 1087, "duration": 1.0}, {"audio": "?", "text": "x"}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    main(["stats", str(path), "--codes-per-second", "25", "--plot", str(tmp_path / "train.png")])
    told = capsys.readouterr().out
    assert "packs of 1,024: fill 100.0%, 1.5% of samples too long (predicted)" in told
    tokens = 64 * 512 + 1100
    packs = [math.ceil(tokens / 8192), math.ceil(tokens / 16384)]
    for seq_len, count in zip((8192, 16384), packs, strict=True):
        assert f"packs of {seq_len:,}: fill {tokens / count / seq_len:.1%} (predicted)" in told
    assert matplotlib.image.imread(tmp_path / "train.png").shape[0] > 1200  # with a third row


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_predicted_fill_is_a_share(lengths: list[int]) -> None:
    for seq_len, fill, too_long in predicted_fill(lengths):
        assert 0 < fill <= 1 and too_long == sum(length > seq_len for length in lengths) / len(lengths)


@given(st.lists(st.tuples(st.floats(0.1, 60), st.sampled_from([None, "a", "b"])), max_size=20))
def test_hours_of_all_speakers_are_the_hours_of_those_who_have_one(rows: list[tuple[float, str | None]]) -> None:
    found = ManifestStatistics()
    for seconds, speaker in rows:
        found.add({"text": "x", "duration": seconds, "speaker": speaker})
    named = sum(seconds for seconds, speaker in rows if speaker)
    assert sum(found.hours["speaker"].values()) == pytest.approx(named / 3600)
    assert found.lines == len(found.seconds) == len(found.rates) == len(rows)
