"""Manifests of NeMo: plain ones, pieces by offset, tarred sets with their ranges of names."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers.nemo import expand
from tests.corpora import RATE, assert_sounds_like, encoded, errors, listed, put, record, tone, write
from ttt_dist.util.errors import UserError


def line(name: str, **fields: Any) -> str:
    return json.dumps({"audio_filepath": name, "duration": 0.3, "text": f"words of {name}", **fields})


def put_tar(path: Path, **members: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name + ".wav")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_expand() -> None:
    assert expand("a/audio__OP_0..2_CL_.tar") == ["a/audio_0.tar", "a/audio_1.tar", "a/audio_2.tar"]
    assert expand("m_(08..10)_<x,y>.json") == [f"m_{n}_{s}.json" for n in ("08", "09", "10") for s in "xy"]
    assert expand("bucket_{1,3}/a.tar") == ["bucket_1/a.tar", "bucket_3/a.tar"]
    assert expand("plain.tar") == ["plain.tar"]


def test_manifest(tmp_path: Path) -> None:
    wave = tone("long", 1.0)
    wave[: RATE // 2] = tone("first", 0.5)
    write(tmp_path / "wavs" / "long.wav", wave)
    record(tmp_path / "wavs" / "a.wav")
    lines = [
        line("wavs/a.wav", speaker=12, lang="en"),
        line("wavs/long.wav", offset=0.0, duration=0.5),
        line(str(tmp_path / "wavs/long.wav"), offset=0.5, duration=0.5),
        line("wavs/long.wav", offset=0.9, duration=0.5),
        line("wavs/b.wav"),
        line("wavs/a.wav", text=""),
        line("wavs/a.wav", duration="long"),
        '{"text": "no audio", "duration": 1}',
    ]
    path = put(tmp_path / "train_manifest.json", *lines)
    put(tmp_path / "dev_manifest.json", line("wavs/a.wav"))
    found, problems = listed("nemo", tmp_path, split="train")
    assert found[0] == {
        "id": "train_manifest-1",
        "text": "words of wavs/a.wav",
        "duration": 0.3,
        "lang": "en",
        "speaker": "12",
        "split": "train",
        "audio": str(tmp_path / "wavs/a.wav"),
    }
    assert [entry["id"] for entry in found] == [f"train_manifest-{n}" for n in (1, 2, 3)]
    for entry, name, seconds in zip(found, ("a", "first", "long"), (0.3, 0.5, 0.5), strict=True):
        assert_sounds_like(entry, name, tmp_path, seconds)
    assert problems.count == 5 and problems.skipped["not in split train"].places == [
        str(tmp_path / "dev_manifest.json")
    ]
    assert [message.partition(": ")[0] for message in sorted(errors(problems))] == [
        f"{path}:{n}" for n in (4, 5, 6, 7, 8)
    ]


@pytest.mark.parametrize("by_range", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_tarred_set(tmp_path: Path, by_range: bool, sharded: bool) -> None:
    """As convert_to_tarred_audio_dataset.py writes it: names squashed, -subN for the pieces of one recording."""
    root = tmp_path / "tarred"
    put_tar(root / "audio_0.tar", clips_a=encoded("a"), long=encoded("long", seconds=1.0))
    put_tar(root / "audio_1.tar", clips_b=encoded("b"), left_out=encoded("left"))
    shards = [
        [
            line("clips_a.wav", shard_id=0),
            line("long.wav", shard_id=0, offset=0.1, duration=0.4),
            line("long-sub1.wav", shard_id=0, offset=0.5, duration=0.5),
        ],
        [line("clips_b.wav", shard_id=1), line("clips_c.wav", shard_id=1), line("clips_a.wav", shard_id=7)],
    ]
    if sharded:
        for number, lines in enumerate(shards):
            put(root / "sharded_manifests" / f"manifest_{number}.json", *lines)
        source = root / "sharded_manifests" / ("manifest__OP_0..1_CL_.json" if by_range else "")
    else:
        source = put(root / "tarred_audio_manifest.json", *shards[0], *shards[1])
    tars = {"audio_root": root / "audio__OP_0..1_CL_.tar"} if by_range else {}
    found, problems = listed("nemo", source, **tars)
    assert [(entry.get("offset"), entry["duration"]) for entry in found] == [
        (None, 0.3),
        (0.1, 0.4),
        (0.5, 0.5),
        (None, 0.3),
    ]
    for entry, name in zip(found, ("a", "long", "long", "b"), strict=True):
        assert_sounds_like(entry, name, tmp_path, entry["duration"])
    assert problems.errors["no recording"].count == problems.count == 2
    assert problems.skipped["in a tar, but not in its manifest"].places == [f"{root}/audio_1.tar: left_out.wav"]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest_1\.json: no such file"):
        listed("nemo", put(tmp_path / "manifest_0.json").with_name("manifest__OP_0..1_CL_.json"))
    with pytest.raises(UserError, match=r"audio_0\.tar: no such file; correct --audio-root"):
        listed("nemo", tmp_path / "manifest_0.json", audio_root=tmp_path / "audio__OP_0..1_CL_.tar")
    with pytest.raises(UserError, match="has no manifest"):
        listed("nemo", put(tmp_path / "empty" / "x.txt").parent)
