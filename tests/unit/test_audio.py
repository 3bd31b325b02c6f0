"""Audio files: reading, pieces, joined utterances, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ttt_dist.audio import UtteranceReader, load_utterance, read_audio, write_wav
from ttt_dist.errors import UserError

RATE = 8000


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)


def test_wav_round_trip(tmp_path: Path) -> None:
    wave = tone(0.3)
    write_wav(tmp_path / "a.wav", wave, RATE)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav", RATE), wave, atol=1e-4, rtol=0)


def test_writing_clips_instead_of_wrapping(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", torch.tensor([2.0, -2.0]), RATE)
    assert read_audio(tmp_path / "a.wav", RATE).tolist() == pytest.approx([1.0, -1.0], abs=1e-3)


def test_channels_are_averaged_and_rates_converted(tmp_path: Path) -> None:
    stereo = np.stack([tone(0.5, rate=16000).numpy(), np.zeros(8000, np.float32)], axis=1)
    soundfile.write(tmp_path / "s.flac", stereo, 16000)
    wave = read_audio(tmp_path / "s.flac", RATE)
    assert len(wave) == RATE // 2
    torch.testing.assert_close(wave[200:-200], tone(0.5)[200:-200] / 2, atol=2e-3, rtol=0)


def test_a_piece_is_read_by_seeking(tmp_path: Path) -> None:
    wave = torch.arange(RATE) / RATE - 0.5
    write_wav(tmp_path / "a.wav", wave, RATE)
    entry = {"audio": "a.wav", "offset": 0.25, "duration": 0.5}
    torch.testing.assert_close(load_utterance(entry, tmp_path, RATE), wave[2000:6000], atol=1e-4, rtol=0)
    to_the_end = load_utterance({"audio": "a.wav", "offset": 0.75}, tmp_path, RATE)
    torch.testing.assert_close(to_the_end, wave[6000:], atol=1e-4, rtol=0)


def test_parts_are_joined_with_silence_before_each(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(0.1), RATE)
    write_wav(tmp_path / "b.wav", tone(0.2, 200.0), RATE)
    reader = UtteranceReader(tmp_path, RATE)
    entry = {"audio": ["a.wav", "b.wav", "a.wav"], "gaps": [0.0, 0.05, 0.01], "tail": 0.02}
    a, b = tone(0.1), tone(0.2, 200.0)
    expected = torch.cat([a, torch.zeros(400), b, torch.zeros(80), a, torch.zeros(160)])
    for _ in range(2):  # the second time from the cache
        torch.testing.assert_close(reader.read(entry), expected, atol=1e-4, rtol=0)


def test_the_cache_forgets_the_least_recently_used(tmp_path: Path) -> None:
    for name in "abc":
        write_wav(tmp_path / f"{name}.wav", tone(0.1), RATE)
    reader = UtteranceReader(tmp_path, RATE, cache_bytes=2 * 800 * 4)
    for name in "abac":
        reader.read({"audio": f"{name}.wav"})
    assert list(reader._cache) == ["a.wav", "c.wav"]
    assert reader._cached_bytes == 2 * 800 * 4


def test_paths_stay_inside_the_root_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    write_wav(tmp_path / "outside.wav", tone(0.1), RATE)
    (tmp_path / "root" / "link.wav").symlink_to(tmp_path / "outside.wav")
    for name in ("../outside.wav", str(tmp_path / "outside.wav"), "link.wav"):
        with pytest.raises(UserError, match="outside"):
            load_utterance({"audio": name}, tmp_path / "root", RATE)
        assert len(load_utterance({"audio": name}, tmp_path / "root", RATE, allow_outside=True)) == 800
        assert len(UtteranceReader(tmp_path / "root", RATE, audio_root=tmp_path).read({"audio": name})) == 800


def test_bad_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan, np.float32), RATE, subtype="FLOAT")
    write_wav(tmp_path / "whole.flac.wav", tone(1.0), RATE)
    cut = (tmp_path / "whole.flac.wav").read_bytes()[:30]
    (tmp_path / "cut.wav").write_bytes(cut)
    for name, reason in [
        ("missing.wav", "no such file"),
        ("empty.wav", "empty file"),
        ("text.wav", "cannot be read as audio"),
        ("zero.wav", "zero length"),
        ("nan.wav", "not finite"),
        ("cut.wav", "cut.wav"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            load_utterance({"audio": name}, tmp_path, RATE)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("piece", [{"offset": 1.5}, {"offset": 0.5, "duration": 0.8}, {"offset": 0.2, "duration": 0.0}])
def test_a_piece_that_is_not_there_is_refused(tmp_path: Path, piece: dict[str, float]) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0), RATE)
    with pytest.raises(UserError, match=r"a\.wav: has 1\.000 s"):
        load_utterance({"audio": "a.wav", **piece}, tmp_path, RATE)
