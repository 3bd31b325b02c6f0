"""FLEURS, VoxPopuli, YODAS, The People's Speech, KeSpeech, LibriHeavy and MACS, each in its own layout, unpacked or in tars."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from data_prep.readers import READERS
from tests.corpora import assert_sounds_like, encoded, errors, listed, put, record
from ttt_dist.util.errors import UserError


def put_tar(path: Path, names: Iterable[str], kind: str = "wav") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = encoded(name.rpartition("/")[2], kind.upper())
            info = tarfile.TarInfo(f"{name}.{kind}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", ["hub", "tar", "lhotse"])
def test_fleurs(tmp_path: Path, form: str) -> None:
    table = tmp_path / ("metadata/cmn_hans_cn" if form == "lhotse" else "cmn_hans_cn") / "train.tsv"
    row = '1\t{}.wav\t他说："你好。\t他说 你好\t他 | 说 |\t4800\t{}'
    put(table, row.format("100", "MALE"), row.format("101", "FEMALE"), row.format("102", "MALE"), "1\tx.wav\tshort")
    put(table.with_name("dev.tsv"), row.format("103", "MALE"))
    audio = tmp_path / "cmn_hans_cn" / ("train" if form == "lhotse" else "audio/train")
    if form == "tar":
        put_tar(audio.with_suffix(".tar"), ("train/100", "train/101", "train/199"))
    else:
        for name in ("100", "101", "199"):
            record(audio / f"{name}.wav")
    found, problems = listed("fleurs", tmp_path, split="train")
    assert [(e["id"], e["text"], e["lang"], e["gender"], e["split"], e["duration"]) for e in found] == [
        ("cmn_hans_cn-100", '他说："你好。', "zh", "male", "train", 0.3),
        ("cmn_hans_cn-101", '他说："你好。', "zh", "female", "train", 0.3),
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"][-3:], tmp_path)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {"no recording": 1, "bad line": 1}
    assert problems.skipped["no transcript"].count == 1


@pytest.mark.parametrize("hub", [True, False])
def test_voxpopuli(tmp_path: Path, hub: bool) -> None:
    names = ["20120203-0900-PLENARY-1-en_1", "20130203-0900-PLENARY-2-en_2", "20130203-0900-PLENARY-2-en_3"]
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
    rows = [
        f"{names[0]}\tIt is.\tit is\t12\ttrain\tfemale\tTrue\tNone",
        f"{names[1]}\t\tno raw\tNone\ttrain\tmale\tTrue\tNone",
    ]
    put(tmp_path / "en" / "asr_train.tsv", header, *rows, f"{names[2]}\tgone\tgone\t1\ttrain\tmale\tTrue\tNone")
    if hub:
        put_tar(tmp_path / "en" / "train" / "train_part_0.tar", (f"train_part_0/{name}" for name in names[:2]))
    else:
        for name in names[:2]:
            record(tmp_path / "en" / name[:4] / f"{name}.ogg")
    found, problems = listed("voxpopuli", tmp_path)
    assert [(e["id"], e["text"], e.get("speaker"), e["gender"], e["lang"]) for e in found] == [
        (names[0], "It is.", "12", "female", "en"),
        (names[1], "no raw", None, "male", "en"),
    ]
    assert_sounds_like(found[1], names[1], tmp_path)
    assert problems.count == 1 and "asr_train.tsv:4" in errors(problems)[0]


@pytest.mark.parametrize("packed", [True, False])
def test_yodas(tmp_path: Path, packed: bool) -> None:
    names = [f"abcDEF_-x1y-0000{n}-00000000-00000030" for n in range(3)]
    shard = tmp_path / "data" / "de100"
    put(shard / "text" / "00000000.txt", *(f"{name} Guten Tag {name[-1]}" for name in names))
    put(shard / "duration" / "00000000.txt", f"{names[0]} 0.3")
    if packed:
        put_tar(shard / "audio" / "00000000.tar", (f"./00000000/{name}" for name in names[:2]))
    else:
        for name in names[:2]:
            record(shard / "audio" / "00000000" / f"{name}.wav")
    found, problems = listed("yodas", tmp_path)
    assert [(e["id"], e["text"], e["lang"], e["captions"], e["duration"]) for e in found] == [
        (name, "Guten Tag 0", "de", "automatic", 0.3) for name in names[:2]
    ]
    assert_sounds_like(found[0], names[0], tmp_path)
    assert list(problems.errors) == ["no recording"] and problems.count == 1


def test_yodas2(tmp_path: Path) -> None:
    shard = tmp_path / "en000"
    record(shard / "audio" / "00000001" / "video.wav", 2.0)
    texts = {
        f"video-0000{n}-{begin:08d}-{end:08d}": f"part {n}"
        for n, (begin, end) in enumerate([(0, 100), (120, 199), (150, 900)])
    }
    put(
        shard / "text" / "00000001.json",
        json.dumps([{"audio_id": "video", "text": texts}, {"audio_id": "gone", "text": {"a": "b"}}, 3]),
    )
    found, problems = listed("yodas", shard)
    assert [(e["text"], e["offset"], e["duration"], e["chapter"], e["captions"]) for e in found] == [
        ("part 0", 0.0, 1.0, "video", "manual"),
        ("part 1", 1.2, 0.79, "video", "manual"),
    ]
    assert_sounds_like(found[1], "video", tmp_path, 0.79)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {
        "bad audio": 1,
        "no recording": 1,
        "bad line": 1,
    }


@pytest.mark.parametrize("packed", [True, False])
def test_peoples_speech(tmp_path: Path, packed: bool) -> None:
    names = [f"talk/talk_DOT_mp3_0000{n}.flac" for n in range(3)]
    data = {"duration_ms": [300, 300, 300], "label": ["so it goes", "", "gone"], "name": names}
    lines = [json.dumps({"identifier": "talk", "training_data": data}), '{"identifier": "x"}']
    put(tmp_path / "train" / "clean.json", *lines)
    put(tmp_path / "train" / "dirty.json", lines[0])
    if packed:
        put_tar(tmp_path / "train" / "clean" / "clean_000000.tar", (f"./{name[:-5]}" for name in names[:2]), "flac")
    else:
        for name in names[:2]:
            record(tmp_path / "train" / "clean" / name)
    found, problems = listed("peoplesspeech", tmp_path, subset="clean")
    assert [(e["id"], e["text"], e["split"], e["subset"], e["duration"], e["chapter"]) for e in found] == [
        ("talk/talk_DOT_mp3_00000", "so it goes", "train", "clean", 0.3, "talk")
    ]
    assert_sounds_like(found[0], "talk_DOT_mp3_00000", tmp_path)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {
        "no text": 1,
        "no recording": 1,
        "bad line": 1,
    }
    assert problems.skipped["not in subset clean"].count == 1


def test_kespeech(tmp_path: Path) -> None:
    part = tmp_path / "Tasks" / "ASR" / "train_phase1"
    record(tmp_path / "Audio" / "1000001" / "phase1" / "1000001_a.wav")
    put(part / "wav.scp", "1000001_a Audio/1000001/phase1/1000001_a.wav")
    put(part / "text", "1000001_a 你好<SPOKEN_NOISE>世界")
    put(part / "utt2spk", "1000001_a 1000001")
    put(part / "utt2subdialect", "1000001_a Ji-Lu")
    put(tmp_path / "Tasks" / "SpeakerRecognition" / "wav.scp", "other x.wav")
    found, problems = listed("kespeech", tmp_path)
    assert found == [
        {
            "id": "1000001_a",
            "audio": str(tmp_path / "Audio/1000001/phase1/1000001_a.wav"),
            "text": "你好世界",
            "speaker": "1000001",
            "dialect": "Ji-Lu",
            "lang": "zh",
            "split": "train_phase1",
            "duration": 0.3,
        }
    ]
    assert not problems.count
    assert "allow_pipes" not in READERS["kespeech"].takes


def test_libriheavy_on_libri_light(tmp_path: Path) -> None:
    record(tmp_path / "LibriLight" / "small" / "100" / "sea_fairies_64kb_mp3" / "01_baum_64kb.flac", 2.0, "fairies")
    name = "small/100/sea_fairies_64kb_mp3/01_baum_64kb"
    source = {"type": "file", "channels": [0], "source": f"download/librilight/{name}.flac"}
    supervision = {
        "id": f"{name}_0",
        "recording_id": name,
        "start": 0,
        "duration": 1.0,
        "channel": 0,
        "language": "English",
        "speaker": "100",
        "custom": {
            "texts": ["The Sea-Fairies.", "THE SEA FAIRIES"],
            "pre_texts": ["", ""],
            "begin_byte": 3,
            "end_byte": 9,
        },
    }
    recording = {
        "id": name,
        "sources": [source],
        "sampling_rate": 8000,
        "num_samples": 16000,
        "duration": 2.0,
        "channel_ids": [0],
    }
    cut = {
        "id": f"{name}_0",
        "start": 0.5,
        "duration": 1.0,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
    }
    path = tmp_path / "libriheavy_cuts_small.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(cut | {"custom": {"text_path": "x"}, "type": "MonoCut"}).encode()))
    for root in (tmp_path / "LibriLight", tmp_path / "LibriLight" / "small"):
        found, problems = listed("librilight", path, audio_root=root)
        assert not problems.count
        assert [
            (e["id"], e["text"], e["offset"], e["duration"], e["lang"], e["speaker"], e["split"]) for e in found
        ] == [(f"{name}_0", "The Sea-Fairies.", 0.5, 1.0, "en", "100", "small")]
        assert_sounds_like(found[0], "fairies", tmp_path, 1.0)


def test_macs(tmp_path: Path) -> None:
    lines = ["files:", "- filename: airport-stockholm-12-488-a.wav", "  annotations:"]
    lines += ["  - annotator_id: 354", "    sentence: adults talking", "    tags: [adults talking, footsteps]"]
    lines += ["  - annotator_id: 353", "    sentence: ''", "    tags: []"]
    lines += [
        "- filename: park-paris-1.wav",
        "  annotations: [{annotator_id: 1, sentence: birds}]",
        "- filename: x.wav",
    ]
    path = put(tmp_path / "MACS" / "MACS.yaml", *lines)
    audio = tmp_path / "TAU" / "audio"
    for name in ("airport-stockholm-12-488-a", "metro-lyon-2"):
        record(audio / f"{name}.wav")
    found, problems = listed("macs", path.parent, audio_root=tmp_path / "TAU")
    assert [(e["id"], e["text"], e["lang"], e["duration"]) for e in found] == [
        ("airport-stockholm-12-488-a-354", "adults talking", "en", 0.3)
    ]
    assert_sounds_like(found[0], "airport-stockholm-12-488-a", tmp_path)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {"no recording": 1, "bad line": 1}
    assert {reason: tally.count for reason, tally in problems.skipped.items()} == {
        "empty caption": 1,
        "no transcript": 1,
    }
    with pytest.raises(UserError, match="is no YAML with 'files'"):
        listed("macs", put(tmp_path / "bad.yaml", "a: [", "b"))
