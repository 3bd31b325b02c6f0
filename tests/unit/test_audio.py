"""Audio files: reading, pieces, joined utterances, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from tests.corpora import assert_sounds_like, record
from ttt_dist.audio import UtteranceReader, io, load_utterance, read_audio, resampling, write_wav
from ttt_dist.util.errors import UserError

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


def flac_with_length(path: Path, frames: int) -> None:
    """Write a FLAC of one second whose header claims `frames` (36 bits from the 108th of its first block on)."""
    soundfile.write(path, tone(1.0).numpy(), RATE)
    data = bytearray(path.read_bytes())
    start = 8 + 13  # "fLaC", block header, then 13 bytes before the byte that holds the highest 4 bits
    data[start] = (data[start] & 0xF0) | (frames >> 32)
    data[start + 1 : start + 5] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(bytes(data))


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    flac_with_length(tmp_path / "right.flac", RATE)
    assert len(read_audio(tmp_path / "right.flac", RATE)) == RATE
    flac_with_length(tmp_path / "huge.flac", 2**36 - 1)  # 512 GB as floats: must not be allocated
    with pytest.raises(UserError, match=r"huge\.flac: (is cut off or damaged|cannot be read)"):
        read_audio(tmp_path / "huge.flac", RATE)
    flac_with_length(tmp_path / "unknown.flac", 0)
    assert len(read_audio(tmp_path / "unknown.flac", RATE)) == RATE


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.wav"])
def test_a_file_that_is_cut_off_never_gives_less_than_it_says(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)
    soundfile.write(tmp_path / name, noise, RATE)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"(is cut off|cannot be read)"):
        read_audio(tmp_path / name, RATE)


def test_of_a_long_file_the_piece_alone_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "long.flac", tone(60.0).numpy(), RATE)
    frames: list[int] = []
    real = soundfile.SoundFile.read

    def read(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> Any:
        data = real(self, *arguments, **options)
        frames.append(len(data))
        return data

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    load_utterance({"audio": "long.flac", "offset": 50.0, "duration": 0.5}, tmp_path, RATE)
    assert frames == [RATE // 2]


def test_blocks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "BLOCK_FRAMES", 300)
    wave = tone(0.2)
    write_wav(tmp_path / "a.wav", wave, RATE)
    torch.testing.assert_close(read_audio(tmp_path / "a.wav", RATE), wave, atol=1e-4, rtol=0)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "a.wav", tone(0.1), RATE)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "a.wav")

    monkeypatch.setattr(soundfile, "SoundFile", refuse)
    with pytest.raises(UserError, match=r"a\.wav: may not be read; change its permissions"):
        read_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".opus"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = record(tmp_path / f"sound{suffix}", seconds=1.0)
    assert_sounds_like({"audio": path.name}, "sound", tmp_path, seconds=1.0)
    assert_sounds_like({"audio": path.name, "offset": 0.4, "duration": 0.5}, "sound", tmp_path, seconds=0.5)


def test_a_format_that_is_not_read_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    with pytest.raises(UserError, match=r"a\.m4a: cannot be read as audio .*convert it to WAV or FLAC"):
        read_audio(tmp_path / "a.m4a", RATE)


@pytest.mark.parametrize("rates", [(2225, 2400), (16_001, 1600), (4_099, 2400), (1601, 8000), (1600, 1601)])
@pytest.mark.parametrize("length", [1, 7, 1600, 9000])
def test_odd_rates_give_torchaudios_samples(
    rates: tuple[int, int], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "LARGE_KERNELS", 0)
    wave = torch.randn(length, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.functional.resample(wave, *rates)
    torch.testing.assert_close(resampling.resample(wave, *rates), expected, atol=5e-6, rtol=0)


def test_usual_rates_are_left_to_torchaudio() -> None:
    usual = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000)
    for from_rate in usual:
        for to_rate in (8000, 16_000, 22_050, 24_000, 44_100, 48_000):
            wave = torch.randn(300, generator=torch.Generator().manual_seed(0))
            assert torch.equal(
                resampling.resample(wave, from_rate, to_rate), torchaudio.functional.resample(wave, from_rate, to_rate)
            )
