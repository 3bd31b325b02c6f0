"""Recordings whose header does not say how long they are: all of them is read, or they are refused."""

import io
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.packages import need_package
from ttt_dist.audio import io as io_module
from ttt_dist.audio import read_audio
from ttt_dist.audio.io import audio_seconds
from ttt_dist.audio.mp3 import frames, parse
from ttt_dist.util.errors import UserError

RATE = 16_000
SECONDS = 12.0
DELAY = 1200  # samples by which encoders of MP3 shift what they are given, at most


def speech(rate: int = RATE, loud_first: bool = True, channels: int = 1) -> np.ndarray:
    """Noise, and near silence before it or behind it: frames of an MP3 of variable rate differ much."""
    wave = np.random.default_rng(0).standard_normal((round(SECONDS * rate), channels)) * 0.1
    quiet = slice(len(wave) // 3, None) if loud_first else slice(0, 2 * len(wave) // 3)
    wave[quiet] *= 1e-4
    return wave.astype(np.float32)


def written(kind: str, subtype: str | None = None, rate: int = RATE, **options: bool | int) -> bytes:
    file = io.BytesIO()
    mode = {"bitrate_mode": "VARIABLE"} if kind == "MP3" else {}
    soundfile.write(file, speech(rate, **options), rate, format=kind, subtype=subtype, **mode)  # type: ignore[arg-type]
    return file.getvalue()


def without_count(mp3: bytes) -> bytes:
    """The stream without its first frame, which counts the others."""
    first = parse(mp3[:4])
    assert first is not None and b"Xing" in mp3[: first.size]
    return mp3[first.size :]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("loud_first", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_mp3_without_a_count_is_read_to_its_end(
    tmp_path: Path, rate: int, channels: int, loud_first: bool, in_memory: bool
) -> None:
    data = without_count(written("MP3", rate=rate, loud_first=loud_first, channels=channels))
    (tmp_path / "a.mp3").write_bytes(data)
    source = data if in_memory else tmp_path / "a.mp3"
    wave = read_audio(source, rate)
    assert SECONDS - 0.05 < len(wave) / rate < SECONDS + 0.2
    assert audio_seconds(source) == pytest.approx(len(wave) / rate, abs=0.11)
    thirds = wave[: 3 * (len(wave) // 3)].reshape(3, -1).square().mean(dim=1)
    assert thirds.argmax() == (0 if loud_first else 2)
    piece = read_audio(source, rate, offset=8.5, duration=2.0)
    np.testing.assert_allclose(piece, wave[round(8.5 * rate) :][: 2 * rate], atol=1e-3)


def test_mp3_tags_around_it_and_parts_put_together_change_nothing(tmp_path: Path) -> None:
    counted = written("MP3")
    plain = without_count(counted)
    tag = b"ID3\x04\0\0" + bytes([0, 0, 40, 5]) + b"\xff\xfb\x90\x00" * 1281 + b"\0"
    for name, data, seconds in [
        ("tagged", tag + plain + b"TAG" + b"x" * 125, SECONDS),
        ("cover", tag + tag + counted, SECONDS),
        ("lyrics", plain + b"LYRICSBEGIN" + b"la " * 9000, SECONDS),
        ("two", counted + counted, 2 * SECONDS),
        ("two plain", plain + tag + plain, 2 * SECONDS),
        ("three", counted + plain + counted, 3 * SECONDS),
    ]:
        assert len(read_audio(data, RATE, name=name)) / RATE == pytest.approx(seconds, abs=0.3), name
        assert audio_seconds(data, name) == pytest.approx(seconds, abs=0.3), name


def test_mp3_that_is_shorter_than_its_count_is_refused_when_it_is_listed() -> None:
    data = written("MP3")
    with pytest.raises(UserError, match=r"x: is cut off or damaged: \d\.\d+ s of 12\.\d+ s are there"):
        audio_seconds(data[: len(data) // 2], "x")


def test_mp3_of_constant_rate_without_a_count_gives_the_samples_that_libsndfile_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, speech(), RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.9)
    data = path.read_bytes()
    assert b"Info" not in data[:100]
    np.testing.assert_array_equal(read_audio(path, RATE), soundfile.read(path, dtype="float32")[0])
    assert len(list(frames(data, 0))) * 576 / RATE == audio_seconds(path)


def put(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def wav_of(riff: int, size: int, tail: bytes = b"") -> bytes:
    data = written("WAV", "PCM_16")
    place = data.find(b"data") + 4
    return put(put(data, 4, struct.pack("<I", riff)), place, struct.pack("<I", size)) + tail


@pytest.mark.parametrize("riff", [0, 8, 36, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_wav_that_was_written_into_a_pipe(tmp_path: Path, riff: int, size: int) -> None:
    (tmp_path / "a.wav").write_bytes(wav_of(riff, size))
    for source in (tmp_path / "a.wav", wav_of(riff, size)):
        assert audio_seconds(source) == SECONDS
        np.testing.assert_allclose(read_audio(source, RATE), speech()[:, 0], atol=1e-4)
        assert len(read_audio(source, RATE, offset=1.0, duration=2.0)) == 2 * RATE


def test_wav_without_samples_is_empty_whatever_chunks_follow() -> None:
    data = wav_of(36, 0)
    place = data.find(b"data") + 8
    with pytest.raises(UserError, match="zero length"):
        read_audio(data[:place] + b"LIST" + struct.pack("<I", 8) + b"INFOxxxx", RATE)


def unknown_flac() -> bytes:
    data = written("FLAC")
    return put(put(data, 21, bytes([data[21] & 0xF0])), 22, bytes(4))


def unknown_rf64(size: int) -> bytes:
    data = written("RF64", "PCM_16")
    return put(data, data.find(b"ds64") + 8, size.to_bytes(8, "little") * 3)


def unknown_caf() -> bytes:
    data = written("CAF", "PCM_16")
    return put(data, data.find(b"data") + 4, b"\xff" * 8)


@pytest.mark.parametrize(
    "make",
    [
        unknown_flac,
        lambda: unknown_rf64(0),
        lambda: unknown_rf64(2**64 - 1),
        unknown_caf,
        lambda: put(written("AU", "PCM_16"), 8, b"\xff" * 4),
    ],
    ids=["flac", "rf64 0", "rf64 -1", "caf", "au"],
)
def test_other_formats_of_unknown_length(tmp_path: Path, make: Callable[[], bytes]) -> None:
    data = make()
    (tmp_path / "a").write_bytes(data)
    for source in (tmp_path / "a", data):
        assert audio_seconds(source) == SECONDS
        np.testing.assert_allclose(read_audio(source, RATE), speech()[:, 0], atol=1e-3)
        piece = read_audio(source, RATE, offset=1.5, duration=2.0)
        np.testing.assert_allclose(piece, speech()[24_000:56_000, 0], atol=1e-3)
        with pytest.raises(UserError, match=r"has 12\.000 s, but the piece"):
            read_audio(source, RATE, offset=11.0, duration=2.0)


@pytest.mark.parametrize("make", [unknown_flac, unknown_caf, lambda: written("OGG", "OPUS"), lambda: written("MP3")])
def test_nothing_is_decoded_beyond_the_most_seconds(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small compressed file may hold days, and its header may not say so."""
    decoded, read = [0], soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: Any, **more: Any) -> np.ndarray:
        decoded.append(len(found := read(self, *args, **more)))
        return found

    monkeypatch.setattr(io_module, "BLOCK_FRAMES", 4000)
    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    data = make()
    with pytest.raises(UserError, match="x: is longer than 2 s, .*; give a piece of it"):
        read_audio(data, RATE, name="x", most_seconds=2.0)
    assert sum(decoded) <= 2 * 48_000 + 4000  # Opus decodes at 48 kHz
    assert len(read_audio(data, RATE, name="x", most_seconds=13.0)) > 11 * RATE


def test_mp3_inside_wav_is_read_to_its_end() -> None:
    for stream in (written("MP3"), without_count(written("MP3"))):
        form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 8000, 1, 0, 12, 1, 2, 1152, 1, 0)
        chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, 100)
        chunks += b"data" + struct.pack("<I", len(stream)) + stream
        data = b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks
        assert len(read_audio(data, RATE)) / RATE == pytest.approx(SECONDS, abs=0.15)
        assert audio_seconds(data) == pytest.approx(SECONDS, abs=0.15)


PAIRS = [
    ("WAV", "GSM610"), ("AIFF", "GSM610"), ("W64", "GSM610"), ("WAV", "G721_32"), ("WAV", "NMS_ADPCM_16"),
    ("AU", "G723_24"), ("WAV", "MS_ADPCM"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW"), ("CAF", "ALAC_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("RF64", "PCM_24"), ("WAV", "DOUBLE"), ("FLAC", "PCM_24"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype"), PAIRS)
def test_whole_and_in_pieces_whether_libsndfile_can_seek_or_not(kind: str, subtype: str) -> None:
    rate = 8000 if subtype == "GSM610" else RATE
    data = written(kind, subtype, rate)
    wave = read_audio(data, rate)
    assert len(wave) / rate == pytest.approx(SECONDS, abs=0.1) and audio_seconds(data) == len(wave) / rate
    piece = read_audio(data, rate, offset=3.0, duration=4.0)
    np.testing.assert_allclose(piece, wave[3 * rate : 7 * rate], atol=2e-3)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_with_another_recording_behind_is_refused(subtype: str) -> None:
    data = written("OGG", subtype)
    with pytest.raises(UserError, match="x: holds several recordings one behind the other .*; convert it to FLAC"):
        read_audio(data + data, RATE, name="x")
    other = written("OGG", subtype, loud_first=False)
    with pytest.raises(UserError, match="x: holds several recordings"):
        audio_seconds(data + other, "x")


def test_a_rate_that_no_recording_has_is_refused() -> None:
    for rate in (1, 999, 768_001, 2**31 - 1):
        data = put(written("WAV", "PCM_16"), 24, struct.pack("<I", rate))
        with pytest.raises(UserError, match=rf"x: has {rate:,} samples a second, by its header; .* correct the header"):
            read_audio(data, RATE, name="x")


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "b.wav").mkdir()
    (tmp_path / "d.wav").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.wav"))
        for name, kind in [("a", "pipe"), ("b", "folder"), ("c", "socket"), ("d", "device")]:
            for read in (audio_seconds, lambda path: read_audio(path, RATE)):
                with pytest.raises(UserError, match=rf"{name}\.wav: cannot be read \(it is a {kind}, not a file"):
                    read(tmp_path / f"{name}.wav")


@pytest.mark.parametrize("name", ["x" * 300 + ".wav", "a/" * 3000 + "b.wav", "nul\0.wav", "half \ud800.wav"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    for read in (audio_seconds, lambda path: read_audio(path, RATE)):
        with pytest.raises(UserError, match="(no such file|no file can have this name).*; correct the path"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"),
    [("a.m4a", "aac", "ipod", RATE), ("a.aac", "aac", "adts", RATE), ("a.webm", "libopus", "webm", 48_000)],
)
def test_what_telephones_and_browsers_record_is_read_through_pyav(
    tmp_path: Path, name: str, codec: str, form: str, rate: int
) -> None:
    av = need_package("av", "containers")
    with av.open(str(tmp_path / name), "w", format=form) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "mono"
        size, kind = stream.codec_context.frame_size or 1024, stream.codec_context.format
        sound = av.AudioFrame.from_ndarray(speech(rate)[:, 0][None], format="fltp", layout="mono")
        sound.sample_rate = rate
        resampler = av.AudioResampler(format=kind, layout="mono", rate=rate, frame_size=size)
        for frame in [*resampler.resample(sound), *resampler.resample(None), None]:
            file.mux(stream.encode(frame))
    data = (tmp_path / name).read_bytes()
    for source in (tmp_path / name, data):
        wave = read_audio(source, RATE)
        assert len(wave) / RATE == pytest.approx(SECONDS, abs=0.15) == audio_seconds(source)
        piece = read_audio(source, RATE, offset=1.0, duration=2.0)
        np.testing.assert_allclose(piece[100:-100], wave[RATE : 3 * RATE][100:-100], atol=1e-3)
    if form == "ipod":
        with pytest.raises(UserError, match="cannot be read as audio"):
            read_audio(data[: len(data) // 2], RATE)
    if form == "webm":
        with pytest.raises(UserError, match="is cut off: .* bytes of samples are there"):
            read_audio(data[: 2 * len(data) // 3], RATE)
        size = data.index(b"\x18S\x80g") + 4
        browsers = (
            data[:size] + b"\x01" + b"\xff" * 7 + data[size + 8 :]
        )  # written while it is recorded: nobody knows the end
        assert data[size] == 1 and len(read_audio(browsers, RATE)) == len(read_audio(data, RATE))


def test_what_pyav_would_read_is_refused_with_a_remedy_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for head in (b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3", b"\xff\xf1\x50\x80", b"#!AMR\n"):
        with pytest.raises(UserError, match=r"convert it to WAV or FLAC, or install that package \(pip install av\)"):
            read_audio(head + bytes(500), RATE)
