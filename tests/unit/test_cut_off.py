"""Recordings that end before they say: refused when they are read and when they are listed. What leaves its end open is read."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_dist.audio import read_audio
from ttt_dist.audio.io import audio_seconds
from ttt_dist.util.errors import UserError

RATE = 16_000
WAVE = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * RATE).astype(np.float32)
KINDS = [
    ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"),
    ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("NIST", "PCM_16"), ("NIST", "ULAW"), ("SVX", "PCM_16"), ("CAF", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"),
]  # fmt: skip


def written(kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, WAVE, RATE, format=kind, subtype=subtype)
    return file.getvalue()


def refused(source: bytes | Path) -> None:
    for read in (
        lambda: read_audio(source, RATE),
        lambda: read_audio(source, RATE, 0.1, 0.2),
        lambda: audio_seconds(source),
    ):
        with pytest.raises(UserError, match=r"(is cut off|cannot be read).*; (fetch it again|convert)"):
            read()


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_what_is_cut_off_is_refused(tmp_path: Path, kind: str, subtype: str, share: float) -> None:
    data = written(kind, subtype)
    assert len(read_audio(data, RATE)) >= len(WAVE)
    assert audio_seconds(data) >= 3.0
    refused(data[: int(len(data) * share)])
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "a")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0x7FFFFFFF - 44, 0])
def test_a_size_that_is_left_open_is_no_cut(size: int) -> None:
    data = written("WAV")
    place = data.index(b"data") + 4
    assert len(read_audio(data[:place] + size.to_bytes(4, "little") + data[place + 4 :], RATE)) == len(WAVE)


def test_shorten_in_a_nist_file_is_no_cut() -> None:
    """As the LDC publishes many corpora: the samples stated are more than the bytes that are there."""
    data = written("NIST").replace(b"sample_coding -s3 pcm", b"sample_coding -s26 pcm,embedded-shorten-v2.00")
    for source in (data, data[:2000]):
        with pytest.raises(UserError, match="is compressed by shorten, which is not read; make a WAV of it"):
            audio_seconds(source)


def test_a_name_for_raw_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(written("WAV"))
    with pytest.raises(UserError, match=r"a\.raw: its name says raw samples, whose rate nothing tells; convert"):
        audio_seconds(tmp_path / "a.raw")


def test_a_header_behind_a_long_chunk_is_looked_at(tmp_path: Path) -> None:
    data = written("WAV")
    place = data.index(b"data")
    long = data[:place] + b"LIST" + (20_000).to_bytes(4, "little") + bytes(20_000) + data[place:]
    assert len(read_audio(long, RATE)) == len(WAVE)
    refused(long[:-20_000])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_ends_with_a_page_that_says_so(subtype: str) -> None:
    data = written("OGG", subtype)
    assert len(read_audio(data + bytes(100), RATE)) == len(WAVE)  # padding behind it
    refused(data[: data.rindex(b"OggS")])
    refused(data[:-1])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_chain_of_one_serial_number_is_not_listed_as_its_first(subtype: str) -> None:
    data = written("OGG", subtype)
    for read in (lambda: read_audio(data * 2, RATE), lambda: audio_seconds(data * 2)):
        with pytest.raises(UserError, match="holds several recordings"):
            read()


@pytest.mark.parametrize("beside", ["._{}", ".AppleDouble/{}"])
@pytest.mark.parametrize("kind", ["MP3", "WAV", "OGG", "FLAC"])
def test_what_macos_leaves_beside_a_recording_is_not_taken_for_it(tmp_path: Path, kind: str, beside: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, WAVE, RATE, format=kind)
    other = tmp_path / beside.format(path.name)
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(bytes.fromhex("00051607 00020000").ljust(4096, b"\0"))
    assert len(read_audio(path, RATE)) >= len(WAVE)
    assert audio_seconds(path) == pytest.approx(3.0, abs=0.1)
