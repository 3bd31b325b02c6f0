"""What the levels of a recording tell: counted as notes, while the recording is encoded."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.__main__ import main
from ttt_dist.audio import UtteranceReader, read_audio
from ttt_dist.audio.levels import BEYOND, CANCELLED, SILENT

RATE = 8000
WAVE = (0.3 * np.sin(np.arange(RATE) / 3)).astype(np.float32)
NOISE = np.random.default_rng(0).standard_normal((3, RATE)).astype(np.float32) * 0.1
CASES = {  # samples [T] or [T, C], and what is said of them
    "usual": (WAVE, []),
    "loud": (4 * WAVE, []),  # 1.2: what a lossy decoder may give
    "16-bit numbers": (32768 * WAVE, [BEYOND]),
    "unit variance": (WAVE / WAVE.std() * 2, [BEYOND]),
    "downwards": (np.where(np.arange(RATE) == 7, -50, WAVE), [BEYOND]),
    "silent": (0 * WAVE, [SILENT]),
    "silent stereo": (np.stack([0 * WAVE, 0 * WAVE], 1), [SILENT]),
    "stereo": (np.stack([WAVE, WAVE], 1), []),
    "one channel": (np.stack([WAVE, 0 * WAVE], 1), []),
    "independent": (NOISE.T, []),
    "opposite": (np.stack([WAVE, -WAVE], 1), [CANCELLED]),
    "nearly opposite": (np.stack([WAVE, -0.8 * WAVE], 1) + 0.1 * NOISE[:2].T, [CANCELLED]),
    "opposite of four": (np.stack([WAVE, -WAVE, WAVE, -WAVE], 1), [CANCELLED]),
    "opposite and loud": (1000 * np.stack([WAVE, -WAVE], 1), [BEYOND, CANCELLED]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rate", [RATE, 11025])
def test_levels_are_told(tmp_path: Path, case: str, rate: int) -> None:
    samples, expected = CASES[case]
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    notes: list[str] = []
    assert len(read_audio(tmp_path / "a.wav", RATE, notes=notes)) == -(-RATE * RATE // rate)
    assert notes == expected


def test_a_recording_that_is_kept_is_told_of_again(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 32768 * WAVE, RATE, subtype="FLOAT")
    reader = UtteranceReader(tmp_path, RATE)
    for _ in range(2):
        notes: list[str] = []
        reader.read({"audio": "a.wav"}, notes)
        assert notes == [BEYOND]


def test_encode_counts_them_and_keeps_the_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for number, (samples, _) in enumerate(CASES.values()):
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE, subtype="FLOAT")
        lines.append({"id": f"u{number}", "audio": f"{number}.wav", "text": "a"})
    lines.append({"id": "joined", "audio": ["2.wav", "0.wav", "2.wav"], "text": "a"})  # told once
    lines.append({"id": "gone", "audio": ["2.wav", "none.wav"], "text": "a"})  # left out: a problem, and no note
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--codec", "melvq", "--train-codec", "--sample-rate", "8000", "--codebook-size", "16", "--max-errors", "1"]
    expected = {
        BEYOND: ["u2", "u3", "u4", "u13", "joined"],
        CANCELLED: ["u10", "u11", "u12", "u13"],
        SILENT: ["u5", "u6"],
    }
    for _ in range(2):  # the second time from what lies there
        main(["encode", "--manifest", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "codes"), *words])
        said = capsys.readouterr().err
        for reason, names in expected.items():
            assert f"{len(names)} with {reason}; the first is {tmp_path}/train.jsonl:" in said
    part = json.loads((tmp_path / "codes" / "part-00000.json").read_text())
    assert part["counts"]["utterances"] == len(CASES) + 1
    assert len(part["problems"]) == 1
    for reason, names in expected.items():
        assert part["notes"][reason]["count"] == len(names)
        assert [place.rpartition(": ")[2] for place in part["notes"][reason]["places"]] == names
