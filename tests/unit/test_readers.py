"""Readers of speech corpora, each on a small tree in the corpus's own layout; every entry's recording can be read."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers import READERS, load_reader
from data_prep.readers.long_recordings import punctuated
from tests.corpora import SECONDS, assert_sounds_like, encoded, errors, listed, put, record, tone, write
from ttt_dist.audio import UtteranceReader
from ttt_dist.manifest import text_files
from ttt_dist.manifest.json_stream import stream_array
from ttt_dist.util.errors import UserError

NOT_UTF8 = b"ID \xff\xfe"


def test_every_reader_of_the_table_can_be_loaded() -> None:
    assert all(callable(load_reader(name)) for name in READERS)


# LibriSpeech, MLS


def test_librispeech_splits(tmp_path: Path) -> None:
    for split, name in [("dev-clean", "84-121123-0000"), ("test-clean", "61-70968-0000")]:
        speaker, chapter, _ = name.split("-")
        folder = tmp_path / split / speaker / chapter
        record(folder / f"{name}.flac")
        put(folder / f"{speaker}-{chapter}.trans.txt", f"{name} HELLO", NOT_UTF8)
    found, problems = listed("librispeech", tmp_path)
    assert [entry["split"] for entry in found] == ["dev-clean", "test-clean"]
    assert [message.partition(": ")[2] for message in errors(problems)] == [
        "is not UTF-8 (invalid start byte); convert the file"
    ] * 2
    assert errors(problems)[0].startswith(f"{tmp_path}/dev-clean/84/121123/84-121123.trans.txt:2: ")
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    found, problems = listed("librispeech", tmp_path, split="test-clean", lang="en-GB")
    assert [(entry["id"], entry["lang"]) for entry in found] == [("61-70968-0000", "en-GB")]
    assert problems.skipped["not in split test-clean"].places == [f"{tmp_path}/dev-clean/84/121123/84-121123.trans.txt"]


@pytest.mark.parametrize("suffix", [".flac", ".opus"])
def test_mls(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / ("mls_german_opus" if suffix == ".opus" else "mls_german")
    for split, name in [("train", "1_20_000000"), ("train", "1_20_000001"), ("dev", "3_40_000000")]:
        speaker, book, _ = name.split("_")
        record(folder / split / "audio" / speaker / book / f"{name}{suffix}")
    put(
        folder / "train" / "transcripts.txt",
        "1_20_000000\tguten tag",
        "1_20_000001\tund auf wiedersehen",
        "1_20_000002\tdie aufnahme fehlt",
        "kaputt",
        b"1_20_000003\t\xe4",
    )
    put(folder / "train" / "segments.txt", "1_20_000000\thttp://x/a.mp3\t401.76\t402.06", "1_20_000002\tu\t1\t2")
    put(folder / "dev" / "transcripts.txt", "3_40_000000\tja")
    found, problems = listed("mls", folder)
    assert found[0] == {
        "id": "1_20_000000",
        "audio": str(folder / f"train/audio/1/20/1_20_000000{suffix}"),
        "text": "guten tag",
        "speaker": "1",
        "chapter": "20",
        "split": "train",
        "lang": "de",
        "duration": 0.3,
    }
    assert [entry["id"] for entry in found] == ["1_20_000000", "1_20_000001", "3_40_000000"]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    told = errors(problems)
    assert len(told) == problems.count == 3
    assert any("transcripts.txt:3: " in message and "no such file" in message for message in told)
    assert any("transcripts.txt:4: is not SPEAKER_BOOK_NUMBER" in message for message in told)
    assert any("transcripts.txt:5: is not UTF-8" in message for message in told)
    assert [entry["split"] for entry in listed("mls", folder, split="dev")[0]] == ["dev"]
    with pytest.raises(UserError, match="name the folder of one language"):
        listed("mls", tmp_path)


# AISHELL


def test_aishell1(tmp_path: Path) -> None:
    for split, name in [("train", "BAC009S0002W0122"), ("train", "BAC009S0002W0123"), ("test", "BAC009S0764W0121")]:
        record(tmp_path / "wav" / split / name[6:11] / f"{name}.wav")
    transcript = put(
        tmp_path / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交 抑制 作用 最 大 的 限 购",
        "BAC009S0764W0121 甚至 出现",
        "BAC009S0764W0199 没有 录音",
        "BAC009S0764W0200",
        NOT_UTF8,
    )
    found, problems = listed("aishell1", tmp_path)
    assert found[1] == {
        "id": "BAC009S0002W0122",
        "audio": str(tmp_path / "wav/train/S0002/BAC009S0002W0122.wav"),
        "text": "而对楼市成交抑制作用最大的限购",
        "lang": "zh",
        "speaker": "S0002",
        "split": "train",
        "duration": SECONDS,
    }
    assert [entry["id"] for entry in found] == ["BAC009S0764W0121", "BAC009S0002W0122"]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert problems.skipped["no transcript"].places == [f"{tmp_path}/wav/train/S0002/BAC009S0002W0123.wav"]
    assert [message.removeprefix(f"{transcript}:").split(" ")[0] for message in errors(problems)] == ["4:", "5:", "3:"]
    assert [entry["split"] for entry in listed("aishell1", tmp_path, split="test")[0]] == ["test"]


def test_aishell2(tmp_path: Path) -> None:
    for folder, name in [("iOS/data", "IC0001W0001"), ("iOS/dev", "ID0012W0030"), ("Mic/dev", "ID0012W0030")]:
        root = tmp_path / folder
        record(root / "wav" / name[:5] / f"{name}.wav", name=folder)
        put(root / "wav.scp", f"{name}\twav/{name[:5]}/{name}.wav", "IC0009W0001\twav/C0009/IC0009W0001.wav")
        put(root / "trans.txt", f"{name}\t厨房 用品", "IC0008W0001\t没有")
    found, problems = listed("aishell2", tmp_path)
    assert [(entry["id"], entry["split"], entry["text"]) for entry in found] == [
        ("Mic-ID0012W0030", "dev", "厨房用品"),
        ("iOS-IC0001W0001", "train", "厨房用品"),
        ("iOS-ID0012W0030", "dev", "厨房用品"),
    ]
    for entry, name in zip(found, ["Mic/dev", "iOS/data", "iOS/dev"], strict=True):
        assert_sounds_like(entry, name, tmp_path)
    assert problems.count == 6
    assert "Mic/dev/wav.scp:2: utterance IC0009W0001 has no line in trans.txt" in errors(problems)[0]
    assert any("Mic/dev/trans.txt:2: utterance IC0008W0001 has no line in wav.scp" in told for told in errors(problems))
    alone, _ = listed("aishell2", tmp_path / "iOS" / "data")
    assert [entry["id"] for entry in alone] == ["IC0001W0001"]
    with pytest.raises(UserError, match=r"has no wav\.scp"):
        listed("aishell2", tmp_path / "iOS" / "data" / "wav")


def test_aishell3(tmp_path: Path) -> None:
    for split, name in [("train", "SSB00050001"), ("test", "SSB06310001")]:
        record(tmp_path / split / "wav" / name[:-4] / f"{name}.wav")
        put(
            tmp_path / split / "content.txt",
            f"{name}.wav\t广 guang3 州 zhou1 女 nv3 大 da4",
            f"{name[:-4]}0002.wav\t广 guang3",
            f"{name[:-4]}0003.wav\t",
        )
    found, problems = listed("aishell3", tmp_path)
    assert found[0] == {
        "id": "SSB00050001",
        "audio": str(tmp_path / "train/wav/SSB0005/SSB00050001.wav"),
        "text": "广州女大",
        "lang": "zh",
        "speaker": "SSB0005",
        "split": "train",
        "duration": SECONDS,
    }
    assert [entry["split"] for entry in found] == ["train", "test"]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert [message.split(": ")[0].rpartition("/")[2] for message in errors(problems)] == [
        *["content.txt:2", "content.txt:2"],
        *["content.txt:3", "content.txt:3"],
    ]


# WenetSpeech and GigaSpeech: segments inside long files


def long_recording(path: Path, names: list[str], seconds: float = 0.5) -> Path:
    """One file in which the named sounds follow each other."""
    import numpy as np

    return write(path, np.concatenate([tone(name, seconds) for name in names]))


def piece(name: str, number: int, text: str, subsets: list[str], key: str = "text", **fields: Any) -> dict[str, Any]:
    begin = number * 0.5
    return {"sid": name, "begin_time": begin, "end_time": begin + 0.5, key: text, "subsets": subsets, **fields}


def test_wenetspeech(tmp_path: Path) -> None:
    names = [f"Y0000000001_abc_S{number:05d}" for number in range(4)]
    long_recording(tmp_path / "audio/train/youtube/B00000/Y0000000001_abc.opus", names)
    segments = [
        piece(names[0], 0, "怎么样这些日子", ["L", "M"], confidence=1.0),
        piece(names[1], 1, "住得还习惯吧", ["L"], confidence=0.95),
        piece(names[2], 2, "测试", ["TEST_NET"], confidence=1.0),
        {**piece(names[3], 3, "太长了", ["L"]), "end_time": 9.0},
        {**piece("empty", 3, "零", ["L"]), "end_time": 1.5},
        {"sid": "broken"},
        piece("weak", 3, "也许", ["{W}"], confidence=0.7),
    ]
    audio = {"aid": "Y0000000001_abc", "duration": 2.0, "path": "audio/train/youtube/B00000/Y0000000001_abc.opus"}
    lost = {**audio, "path": "audio/lost.opus", "segments": [piece("lost", 0, "丢", ["L"])]}
    source = put(
        tmp_path / "WenetSpeech.json",
        json.dumps({"audios": [{**audio, "segments": segments}, lost, {"aid": "x"}]}, ensure_ascii=False, indent=1),
    )
    found, problems = listed("wenetspeech", tmp_path)
    assert found[0] == {
        "id": names[0],
        "audio": str(tmp_path / audio["path"]),
        "offset": 0.0,
        "duration": 0.5,
        "text": "怎么样这些日子",
        "confidence": 1.0,
        "split": "train",
        "lang": "zh",
    }
    assert [(entry["id"], entry["split"]) for entry in found] == [
        (names[0], "train"),
        (names[1], "train"),
        (names[2], "test_net"),
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path, seconds=0.5)
    told = errors(problems)
    assert len(told) == problems.count == 5
    for number, reason in [
        (3, "segment empty: has no text, text that is not UTF-8, or no length (1.5 to 1.5 s)"),
        (3, "a segment lacks or garbles a field (KeyError: 'begin_time')"),
        (3, f"segment {names[3]}: ends at 9.000 s"),
        (72, "lost.opus: no such file"),
        (88, "this audio lacks a path or segments ('path')"),
    ]:
        assert any(f"{source}:{number}: " in message and reason in message for message in told), (reason, told)
    found, problems = listed("wenetspeech", source, subset="M")
    assert [entry["id"] for entry in found] == names[:1]
    assert problems.skipped["not in subset M"].count == 6
    weak, _ = listed("wenetspeech", source, subset="W")
    assert [entry["id"] for entry in weak] == ["weak"]
    assert [entry["id"] for entry in listed("wenetspeech", tmp_path, split="test_net")[0]] == [names[2]]


def test_gigaspeech(tmp_path: Path) -> None:
    names = [f"POD0000000001_S{number:07d}" for number in range(4)]
    long_recording(tmp_path / "audio/podcast/P0001/POD0000000001.opus", names)
    segments = [
        piece(names[0], 0, "AS THEY'RE LEAVING <COMMA> CAN KASH PULL <QUESTIONMARK>", ["{XL}", "{M}"], "text_tn"),
        piece(names[1], 1, "<MUSIC>", ["{DEV}"], "text_tn"),
        piece(names[2], 2, "SO IT IS <PERIOD>", ["{DEV}"], "text_tn", speaker="anna"),
        piece(names[3], 3, "\udcff", ["{XL}"], "text_tn"),
    ]
    segments[0]["speaker"] = "N/A"
    audio = {"aid": "POD0000000001", "path": "audio/podcast/P0001/POD0000000001.opus", "segments": segments}
    text = json.dumps({"dataset": "GigaSpeech", "audios": [audio]}, ensure_ascii=False)
    put(tmp_path / "GigaSpeech.json", text.encode("utf-8", "surrogateescape"))
    found, problems = listed("gigaspeech", tmp_path)
    assert [{key: entry.get(key) for key in ("id", "text", "lang", "split", "speaker")} for entry in found] == [
        {
            "id": names[0],
            "text": "AS THEY'RE LEAVING, CAN KASH PULL?",
            "lang": "en",
            "split": "train",
            "speaker": None,
        },
        {"id": names[2], "text": "SO IT IS.", "lang": "en", "split": "dev", "speaker": "anna"},
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path, seconds=0.5)
    assert problems.skipped["no speech: <MUSIC>"].places == [f"{tmp_path}/GigaSpeech.json:1: segment {names[1]}"]
    assert len(errors(problems)) == 1 and "not UTF-8" in errors(problems)[0]
    assert [entry["id"] for entry in listed("gigaspeech", tmp_path, subset="M")[0]] == names[:1]
    with pytest.raises(UserError, match=r"GigaSpeech\.json: no such file"):
        listed("gigaspeech", tmp_path / "audio")


def test_punctuation_of_gigaspeech() -> None:
    assert punctuated("WELL <COMMA> YES <EXCLAMATIONPOINT> NO <PERIOD>") == "WELL, YES! NO."


def test_segments_of_long_files_are_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    names = [str(number) for number in range(40)]
    long_recording(tmp_path / "audio" / "a.flac", names)
    segments = [piece(name, number, name, ["L"]) for number, name in enumerate(names)]
    put(tmp_path / "WenetSpeech.json", json.dumps({"audios": [{"path": "audio/a.flac", "segments": segments}]}))
    frames: list[int] = []
    opened: list[object] = []
    real_read, real_open = soundfile.SoundFile.read, soundfile.SoundFile.__init__

    def read(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> Any:
        found = real_read(self, *arguments, **options)
        frames.append(len(found))
        return found

    def open_file(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> None:
        opened.append(arguments)
        real_open(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    monkeypatch.setattr(soundfile.SoundFile, "__init__", open_file)
    found, _ = listed("wenetspeech", tmp_path)
    assert (len(opened), frames) == (1, [])  # listing opens one header for 40 segments and decodes nothing
    reader = UtteranceReader(tmp_path, 8000)
    assert [len(reader.read(entry)) for entry in found[5:8]] == [4000] * 3
    assert frames == [4000] * 3


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
def test_a_list_is_streamed_whatever_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    from ttt_dist.manifest import json_stream
    from ttt_dist.manifest.problems import Problems

    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    items = [{"n": number, "text": 'é]}\\"' * number, "segments": [[], {}]} for number in range(20)]
    path = put(tmp_path / "a.json", json.dumps({"title": "x", "audios": items, "end": 1}, ensure_ascii=False, indent=2))
    problems = Problems(told=0)
    found = list(stream_array(path, "audios", problems))
    assert [item for _, item in found] == items
    lines = path.read_text().splitlines()
    for place, item in found:
        number = int(place.rpartition(":")[2])
        assert json.loads(lines[number].strip().rstrip(",").partition(": ")[2]) == item["n"]
    whole = path.read_text()
    path.write_text(whole[: whole.index('"n": 10')])
    assert [item["n"] for _, item in stream_array(path, "audios", problems)] == list(range(10))
    assert problems.count == 1 and "the list 'audios' breaks off" in errors(problems)[0]
    with pytest.raises(UserError, match="has no list 'other'"):
        list(stream_array(path, "other", problems))


# Common Voice

HEADER = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tage\tgender\taccents\tlocale\tsegment"


def voice(path: str, sentence: str) -> str:
    return f"f00\t{path}\t12ab\t{sentence}\t\t2\ttwenties\t\t\tcy\t"


def common_voice(folder: Path) -> Path:
    for number in range(4):
        record(folder / "clips" / f"common_voice_cy_{number}.mp3")
    put(
        folder / "train.tsv",
        HEADER,
        voice("common_voice_cy_0.mp3", '"Mae hi yn oer'),
        voice("common_voice_cy_9.mp3", "x"),
    )
    put(folder / "dev.tsv", HEADER, voice("common_voice_cy_1", "Helo"), "short\tline", b"\xff", voice("", "no path"))
    put(folder / "test.tsv", HEADER)
    put(folder / "validated.tsv", HEADER, *(voice(f"common_voice_cy_{number}.mp3", "Ie") for number in range(3)))
    put(folder / "clip_durations.tsv", "clip\tduration[ms]", "common_voice_cy_0.mp3\t300", "common_voice_cy_9.mp3\t1")
    return folder


@pytest.mark.parametrize("source", ["", "cy"])
def test_commonvoice(tmp_path: Path, source: str) -> None:
    folder = common_voice(tmp_path / "cy")
    found, problems = listed("commonvoice", tmp_path / source)
    assert found[1] == {
        "id": "common_voice_cy_0",
        "audio": str(folder / "clips" / "common_voice_cy_0.mp3"),
        "text": '"Mae hi yn oer',
        "split": "train",
        "lang": "cy",
        "speaker": "f00",
        "age": "twenties",
        "duration": 0.3,
    }
    assert [entry["id"] for entry in found] == ["common_voice_cy_1", "common_voice_cy_0"]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    told = errors(problems)
    assert len(told) == problems.count == 4
    for place, reason in [
        ("train.tsv:3: ", "no such file"),
        ("dev.tsv:3: ", "has 2 columns, the header 11"),
        ("dev.tsv:4: ", "is not UTF-8"),
        ("dev.tsv:5: ", "column 'path' or 'sentence' is missing or empty"),
    ]:
        assert any(place in message and reason in message for message in told)
    validated, _ = listed("commonvoice", tmp_path / source, split="validated")
    assert [entry["id"] for entry in validated] == [f"common_voice_cy_{number}" for number in range(3)]
    with pytest.raises(UserError, match=r"has no other\.tsv"):
        listed("commonvoice", tmp_path, split="other")


def test_commonvoice_with_sentences_that_a_csv_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = {'"Ie ""nawr""."': 'Ie "nawr".', '"""Ie."""': '"Ie."', '"Ie."': '"Ie."', 'Ie "nawr"': 'Ie "nawr"'}
    for number in range(len(sentences)):
        record(tmp_path / "cy" / "clips" / f"{number}.mp3")
    rows = [voice(f"{number}.mp3", sentence) for number, sentence in enumerate(sentences)]
    put(tmp_path / "cy" / "train.tsv", HEADER, *rows)
    found, _ = listed("commonvoice", tmp_path / "cy")
    assert [entry["text"] for entry in found] == list(sentences.values())
    assert "CSV" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["", "transcript/cy"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_commonvoice_of_the_hub(tmp_path: Path, source: str, unpacked: bool) -> None:
    """As mozilla-foundation/common_voice_17_0 and its successors: transcript/LANG, and clips in tars by split."""
    name = "common_voice_cy_{}".format
    for split, numbers in {"train": (0, 1, 2), "test": (3,)}.items():
        for number in numbers:
            folder = tmp_path / "audio/cy" / split / f"cy_{split}_{number % 2}"
            record(folder / f"{name(number)}.mp3")
        put(tmp_path / f"transcript/cy/{split}.tsv", HEADER, *(voice(f"{name(n)}.mp3", f"Ie {n}") for n in numbers[:2]))
    put(tmp_path / "transcript/cy/dev.tsv", HEADER, voice("gone.mp3", "x"))
    put(
        tmp_path / "transcript/cy/validated.tsv", HEADER, voice(f"{name(2)}.mp3", "Dau"), voice(f"{name(3)}.mp3", "Tri")
    )
    for folder in sorted(path for path in (tmp_path / "audio").glob("cy/*/*") if path.is_dir() and not unpacked):
        with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
            tar.add(folder, folder.name)
        shutil.rmtree(folder)
    found, problems = listed("commonvoice", tmp_path / source)
    assert [(e["id"], e["text"], e["split"], e["lang"], "member" in e) for e in found] == [
        (name(3), "Ie 3", "test", "cy", not unpacked),
        (name(0), "Ie 0", "train", "cy", not unpacked),
        (name(1), "Ie 1", "train", "cy", not unpacked),
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    [told] = errors(problems)
    assert "dev.tsv:2: recording gone is not there" in told
    assert problems.skipped["no transcript"].count == 1
    validated, _ = listed("commonvoice", tmp_path / source, split="validated")
    assert [entry["id"] for entry in validated] == [name(2), name(3)]


# What every walk meets


def test_folders_and_names_that_cannot_be_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "a" / "one_1.wav")
    record(tmp_path / "locked" / "two_2.wav")
    (tmp_path / "a" / os.fsdecode(b"\xffthree_3.wav")).write_bytes(encoded("x"))
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, problems = listed("pattern", tmp_path, pattern="{folder}/{text}_{index}.wav")
    assert [entry["id"] for entry in found] == ["a/one_1"]
    told = errors(problems)
    assert f"{tmp_path}/locked: cannot be listed (Permission denied); change its permissions" in told
    assert any("three_3.wav" in message and "its name is not UTF-8" in message for message in told)
    assert len(told) == 2


def test_a_file_that_cannot_be_read_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = common_voice(tmp_path / "cy")
    for name in ("1-2-0", "3-4-0"):
        speaker, chapter, _ = name.split("-")
        record(tmp_path / "clean" / speaker / chapter / f"{name}.flac")
        put(tmp_path / "clean" / speaker / chapter / f"{speaker}-{chapter}.trans.txt", f"{name} HELLO")

    def refuse(path: Path, mode: str) -> Any:
        if path.name in ("1-2.trans.txt", "train.tsv"):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(text_files, "open", refuse, raising=False)
    found, problems = listed("librispeech", tmp_path / "clean")
    assert [entry["id"] for entry in found] == ["3-4-0"]
    refused = tmp_path / "clean/1/2/1-2.trans.txt"
    assert f"{refused}: cannot be read (Permission denied); correct the path or its permissions" in errors(problems)
    found, problems = listed("commonvoice", folder)
    assert [entry["split"] for entry in found] == ["dev"]
    assert any(message.startswith(f"{folder}/train.tsv: cannot be read") for message in errors(problems))
