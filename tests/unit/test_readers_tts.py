"""Corpora for speech synthesis, each on a small tree in its own layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import assert_sounds_like, errors, listed, put, record
from ttt_dist.util.errors import UserError


def texts(entries: list[dict[str, Any]], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(entry.get(name) for name in ("id", "text", *fields)) for entry in entries]


def test_libritts(tmp_path: Path) -> None:
    corpus = tmp_path / "LibriTTS"
    put(corpus / "SPEAKERS.txt", ";ID  |SEX| SUBSET |MINUTES| NAME", "84   | F | dev-clean | 8.02 | Christie Nowak")
    for name in ("84_121123_000007_000001", "84_121123_000008_000000", "61_70968_000000_000000"):
        speaker, chapter = name.split("_")[:2]
        split = "dev-clean" if speaker == "84" else "test-clean"
        wav = record(corpus / split / speaker / chapter / f"{name}.wav")
        put(wav.with_suffix(".normalized.txt"), f"Mister {name}.")
        put(wav.with_suffix(".original.txt"), f"Mr. {name}.")
        put(wav.with_name(f"{speaker}_{chapter}.trans.tsv"), f"{name}\tx\ty")
    folder = corpus / "dev-clean" / "84" / "121123"
    record(folder / "84_121123_000009_000000.wav")  # LibriTTS-R lacks some
    put(folder / "84_121123_000010_000000.normalized.txt", "no sound")
    record(folder / "84_121123_000011_000000.wav")
    put(folder / "84_121123_000011_000000.normalized.txt", "")
    for source in (corpus, corpus / "dev-clean"):
        found, problems = listed("libritts", source, split="dev-clean")
        assert texts(found, "speaker", "chapter", "split", "gender", "lang", "duration") == [
            (name, f"Mister {name}.", "84", "121123", "dev-clean", "female", "en", 0.3)
            for name in ("84_121123_000007_000001", "84_121123_000008_000000")
        ]
        assert_sounds_like(found[1], "84_121123_000008_000000", tmp_path)
        counts = {reason: tally.count for reason, tally in problems.errors.items()}
        assert counts == {"no transcript": 1, "no recording": 1, "no text": 1}


def test_ljspeech(tmp_path: Path) -> None:
    corpus = tmp_path / "LJSpeech-1.1"
    lines = [
        'LJ001-0001|"Printing, in 1450|"Printing, in fourteen fifty',  # a quote that nobody closes
        "LJ001-0002|only one text",
        "LJ001-0003|no recording|no recording",
        "LJ001-0004",
        "wavs/other.wav|by path|",
        "LJ001-0005||",
    ]
    path = put(corpus / "metadata.csv", *lines)
    for name in ("LJ001-0001", "LJ001-0002", "other", "LJ001-0005"):
        record(corpus / "wavs" / f"{name}.wav")
    for source in (corpus, path):
        found, problems = listed("ljspeech", source)
        assert texts(found, "speaker", "lang") == [
            ("LJ001-0001", '"Printing, in fourteen fifty', "LJSpeech-1.1", "en"),
            ("LJ001-0002", "only one text", "LJSpeech-1.1", "en"),
            ("other", "by path", "LJSpeech-1.1", "en"),
        ]
        assert [message.partition(": ")[0] for message in errors(problems)] == [
            f"{path}:{number}" for number in (3, 4, 6)
        ]
    assert_sounds_like(found[2], "other", tmp_path)


@pytest.mark.parametrize("release", ["0.92", "0.80"])
def test_vctk(tmp_path: Path, release: str) -> None:
    new = release == "0.92"
    folder, tails = ("wav48_silence_trimmed", ("_mic1.flac", "_mic2.flac")) if new else ("wav48", (".wav",))
    for name in ("p225_001", "p226_001", "p315_001"):
        for tail in tails:
            record(tmp_path / folder / name[:4] / f"{name}{tail}", name=name)
        if name != "p315_001":
            put(tmp_path / "txt" / name[:4] / f"{name}.txt", f"Please call {name}.")
    if new:
        record(tmp_path / folder / "p226" / "p226_002_mic2.flac", name="alone")
        put(tmp_path / "txt" / "p226" / "p226_002.txt", "Alone.")
        put(tmp_path / folder / "log.txt", "x")
    header = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS"
    put(tmp_path / "speaker-info.txt", header, f"{'p' if new else ''}225  23  F    English    Southern  England")
    found, problems = listed("vctk", tmp_path, lang="en-GB")
    expected = [("p225_001", "Please call p225_001.", "p225", "female", "23", "English", "en-GB")]
    expected += [("p226_001", "Please call p226_001.", "p226", None, None, None, "en-GB")]
    expected += [("p226_002", "Alone.", "p226", None, None, None, "en-GB")] if new else []
    assert texts(found, "speaker", "gender", "age", "accents", "lang") == expected
    assert_sounds_like(found[0], "p225_001", tmp_path)
    assert not problems.count
    skipped = {reason: tally.count for reason, tally in problems.skipped.items()}
    assert skipped == ({"second microphone": 3, "no transcript": 1} if new else {"no transcript": 1})
    with pytest.raises(UserError, match="has neither wav48_silence_trimmed nor wav48"):
        listed("vctk", tmp_path / "txt")


def test_hifitts(tmp_path: Path) -> None:
    names = ["audio/92_clean/13015/x_01_0000.flac", "audio/92_clean/13015/x_01_0001.flac"]
    record(tmp_path / names[0], name="x")
    known = {
        "duration": 0.3,
        "text": "it rained",
        "text_no_preprocessing": "It rained.",
        "text_normalized": "It rained.",
    }
    lines = [json.dumps({"audio_filepath": name, **known}) for name in names]
    path = put(tmp_path / "92_manifest_clean_train.json", *lines, '{"text": "x"}', "{")
    put(tmp_path / "92_manifest_clean_dev.json", lines[0])
    found, problems = listed("hifitts", tmp_path, split="train")
    assert texts(found, "speaker", "chapter", "split", "lang", "duration") == [
        ("92_clean/13015/x_01_0000", "It rained.", "92", "13015", "train", "en", 0.3)
    ]
    assert_sounds_like(found[0], "x", tmp_path)
    assert [message.partition(": ")[0] for message in sorted(errors(problems))] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_wenetspeech4tts(tmp_path: Path) -> None:
    for grade, name in (("Premium", "X0_S1-S2"), ("Standard", "X1_S1"), ("Basic", "X2_S1")):
        folder = tmp_path / grade / f"WenetSpeech4TTS_{grade}_9"
        record(folder / "wavs" / f"{name}.wav")
        put(folder / "txts" / f"{name}.txt", f"{name}\t你好，世界。", "[(0.0, 0.3)]")
    record(tmp_path / "Premium" / "WenetSpeech4TTS_Premium_9" / "wavs" / "bare.wav")
    found, problems = listed("wenetspeech4tts", tmp_path, subset="Standard")
    assert texts(found, "lang", "grade") == [
        ("X0_S1-S2", "你好，世界。", "zh", "Premium"),
        ("X1_S1", "你好，世界。", "zh", "Standard"),
    ]
    assert problems.skipped["not in subset Standard"].count == 1 and problems.errors["no transcript"].count == 1
    assert len(listed("wenetspeech4tts", tmp_path)[0]) == 3
    with pytest.raises(UserError, match="has Premium, Standard, Basic"):
        listed("wenetspeech4tts", tmp_path, subset="L")
