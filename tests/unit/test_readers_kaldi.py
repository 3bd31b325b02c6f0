"""Data directories of Kaldi and ESPnet: plain paths, pipes, archives, segments; what does not fit is named and counted."""

import subprocess
import sys
from pathlib import Path

from tests.corpora import RATE, assert_sounds_like, encoded, errors, listed, put, read_entries, record, tone, write


def recipe(tmp_path: Path, *names: str) -> Path:
    """The folder of an ESPnet recipe, with recordings in dump/raw/train/data."""
    egs = tmp_path / "egs2" / "an4" / "asr1"
    for name in names:
        record(egs / "dump/raw/train/data/format.1" / f"{name}.flac")
    return egs


def test_espnet_dump_directory(tmp_path: Path) -> None:
    egs = recipe(tmp_path, "fbbh-an86", "fbbh-an87")
    train = egs / "dump/raw/train"
    paths = [f"{name} dump/raw/train/data/format.1/{name}.flac" for name in ("fbbh-an86", "fbbh-an87")]
    put(train / "wav.scp", *paths, "fbbh-an88 dump/raw/train/data/format.1/fbbh-an88.flac", "fbbh-an89 x.flac")
    put(train / "text", "fbbh-an86 RUBOUT  G M", "fbbh-an87 YES <COMMA> NO", "fbbh-an88 GONE", "fbbh-an90 NO AUDIO")
    put(train / "utt2spk", "fbbh-an86 fbbh", "fbbh-an87 fbbh")
    put(train / "utt2lang", "fbbh-an87 en-GB")
    put(train / "utt2num_samples", "fbbh-an86 2400")
    put(egs / "dump/raw/org/train/wav.scp", *paths)
    found, problems = listed("kaldi", egs / "dump")
    assert found == [
        {
            "id": "fbbh-an86",
            "audio": str(train / "data/format.1/fbbh-an86.flac"),
            "text": "RUBOUT  G M",
            "speaker": "fbbh",
            "split": "train",
            "duration": 0.3,
        },
        {
            "id": "fbbh-an87",
            "audio": str(train / "data/format.1/fbbh-an87.flac"),
            "text": "YES, NO",
            "speaker": "fbbh",
            "lang": "en-GB",
            "split": "train",
            "duration": 0.3,
        },
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"], egs)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {"no recording": 2, "no text": 1}
    told = errors(problems)
    assert any("wav.scp:3: dump/raw/train/data/format.1/fbbh-an88.flac: no such file" in message for message in told)
    assert any("wav.scp:4: utterance fbbh-an89 has no line in text" in message for message in told)
    assert any("text:4: utterance fbbh-an90 has no line in wav.scp" in message for message in told)
    assert problems.skipped["unfiltered copy of ESPnet's"].places == [str(egs / "dump/raw/org")]


def test_kaldi_segments_of_recordings(tmp_path: Path) -> None:
    data = tmp_path / "s5" / "data" / "train"
    wave = tone("reco1", 2.0)
    wave[: RATE // 2] = tone("first", 0.5)
    write(tmp_path / "corpus" / "reco1.wav", wave)
    record(tmp_path / "corpus" / "reco2.wav", 1.0)
    put(data / "wav.scp", f"reco1 {tmp_path}/corpus/reco1.wav", f"reco2 {tmp_path}/corpus/reco2.wav", "reco3 no.wav")
    put(
        data / "segments",
        "u1 reco1 0.00 0.50",
        "u2 reco1 1.0 -1",
        "u3 reco2 0.5 9.0",
        "u4 reco2 0.5",
        "u5 reco9 0 1",
        "u6 reco3 0 1",
    )
    put(data / "text", *(f"{name} words of {name}" for name in ("u2", "u1", "u3", "u4", "u5", "u6")))
    put(data / "reco2dur", "reco2 1.0")
    found, problems = listed("kaldi", data, lang="de")
    audio = str(tmp_path / "corpus" / "reco1.wav")
    shared = {"audio": audio, "lang": "de", "split": "train", "chapter": "reco1"}
    assert found == [
        {"id": "u1", "offset": 0.0, "duration": 0.5, "text": "words of u1", **shared},
        {"id": "u2", "offset": 1.0, "duration": 1.0, "text": "words of u2", **shared},
    ]
    assert_sounds_like(found[0], "first", tmp_path, 0.5)
    assert_sounds_like(found[1], "reco1", tmp_path, 1.0)
    counts = {reason: tally.count for reason, tally in problems.errors.items()}
    assert counts == {
        "bad segment": 1,
        "bad line": 1,
        "no recording": 3,
        "bad audio": 1,
    }  # u3; u4, also as text; u5, u6


def test_archives_of_recordings(tmp_path: Path) -> None:
    """Kaldi's wav-copy writes the WAVs one after another; kaldiio marks other formats and writes their length."""
    flac = encoded("b", "FLAC")
    size = len(flac).to_bytes(2, "little")
    archive = b"a " + encoded("a") + b"b AUDIO\2" + size + flac + b"c \0BFM \4" + bytes(20)
    path = tmp_path / "data_wav.ark"
    path.write_bytes(archive)
    starts = [archive.index(key) + 2 for key in (b"a RIFF", b"b AUDIO", b"c \0BFM")]
    put(tmp_path / "wav.scp", *(f"{key} {path}:{start}" for key, start in zip("abc", starts, strict=True)))
    put(tmp_path / "text", "a one", "b two", "c three")
    found, problems = listed("kaldi", tmp_path / "wav.scp")
    assert [entry["id"] for entry in found] == ["a", "b"]
    for entry in found:
        assert entry["duration"] == 0.3
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert "holds a matrix of features" in errors(problems)[0]


def test_pipes_are_refused_or_run(tmp_path: Path) -> None:
    data = tmp_path / "s5" / "data" / "dev"
    record(tmp_path / "s5" / "corpus" / "a.wav")
    record(tmp_path / "s5" / "corpus" / "b c.wav")
    put(data / "wav.scp", "a cat corpus/a.wav |", "b cat 'corpus/b c.wav' | cat |", "c cat no.wav|")
    put(data / "text", "a one", "b two", "c three")
    found, problems = listed("kaldi", data)
    assert not found and problems.errors["pipe"].count == 3
    assert errors(problems)[0].startswith(f"{data}/wav.scp:1: 'cat corpus/a.wav |' is a command")
    out = tmp_path / "dev.jsonl"
    command = [sys.executable, "-m", "data_prep", "manifest", "--reader", "kaldi", "--source", str(data)]
    run = subprocess.run([*command, "--out", str(out), "--allow-pipes"], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "'cat no.wav |' failed with exit status 1" in run.stderr
    entries = read_entries(out)
    assert [entry["id"] for entry in entries] == ["a", "b"]
    assert_sounds_like(entries[0], "a", tmp_path)
    assert_sounds_like(entries[1], "b c", tmp_path)
    assert all(entry["audio"].startswith("dev.jsonl.pipes/") for entry in entries)


def test_other_root_and_splits(tmp_path: Path) -> None:
    """Lists made on another machine: --audio-root finds what is left of their paths."""
    record(tmp_path / "here" / "wav" / "s1" / "a.wav")
    for split in ("train", "test"):
        put(tmp_path / "data" / split / "wav.scp", f"{split}-a /export/corpora/X/wav/s1/a.wav")
        put(tmp_path / "data" / split / "text", f"{split}-a hello")
        put(tmp_path / "data" / split / "split2" / "1" / "wav.scp", "again /nowhere.wav")
    found, problems = listed("kaldi", tmp_path / "data", split="test", audio_root=tmp_path / "here")
    assert [(entry["id"], entry["audio"]) for entry in found] == [("test-a", str(tmp_path / "here/wav/s1/a.wav"))]
    assert not problems.count and problems.skipped["not in split test"].count == 1
