"""WebDataset tars: samples of members with one key, whatever their order; texts of all usual kinds."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.corpora import assert_sounds_like, encoded, errors, listed
from ttt_dist.util.errors import UserError


def put_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_text_and_json(tmp_path: Path) -> None:
    meta = {"sentence": "from json", "language": "de", "speaker_id": 7, "duration": 0.3, "offset": 12.5, "url": "x"}
    members = {
        "./train/a.1.flac": encoded("a", "FLAC"),  # the key ends at the first dot
        "./train/a.1.txt": b" hello \n",
        "b.json": json.dumps(meta).encode(),
        "b.wav": encoded("b"),
        "c.flac": encoded("c", "FLAC"),
        "c.json": json.dumps(meta | {"text": None, "duration": None}).encode(),
        "c.txt": "grüße".encode(),
        "c.png": b"picture",
        "d.flac": encoded("d", "FLAC"),
        "e.txt": b"no audio",
        "f.flac": b"broken",
        "f.txt": b"broken",
        "g.flac": encoded("g", "FLAC"),
        "g.json": b"{",
    }
    tar = put_tar(tmp_path / "data-000000.tar", members)
    found, problems = listed("webdataset", tar)
    shared = {"lang": "de", "speaker": "7", "duration": 0.3}
    expected = [{"id": "train/a", "text": "hello", "duration": 0.3}]
    expected += [{"id": "b", "text": "from json", **shared}, {"id": "c", "text": "grüße", **shared}]
    assert [{name: entry[name] for name in entry if name not in ("audio", "member")} for entry in found] == expected
    for entry, name in zip(found, "abc", strict=True):
        assert entry["audio"] == str(tar)
        assert_sounds_like(entry, name, tmp_path)
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {
        "bad audio": 1,
        "bad line": 1,
        "no text": 1,
        "no recording": 1,
    }
    assert problems.skipped["member .png"].places == [f"{tar}: c.png"]


def test_folders_ranges_columns_and_captions(tmp_path: Path) -> None:
    for split, number, name in (("train", 0, "a"), ("train", 1, "b"), ("test", 0, "c")):
        captions = {"text": [f"{name} one", "", f"{name} two"], "title": f"title {name}"}
        members = {f"{name}.flac": encoded(name, "FLAC"), f"{name}.json": json.dumps(captions).encode()}
        put_tar(tmp_path / split / f"{number}.tar", members)
    found, _ = listed("webdataset", tmp_path)
    assert [(entry["id"], entry["text"], entry["split"]) for entry in found] == [
        (f"{name}-{number}", f"{name} {word}", split)
        for name, split in (("c", "test"), ("a", "train"), ("b", "train"))
        for number, word in ((1, "one"), (2, "two"))
    ]
    found, problems = listed("webdataset", tmp_path, split="test")
    assert {entry["id"] for entry in found} == {"c-1", "c-2"} and problems.skipped["not in split test"].count == 4
    found, _ = listed("webdataset", tmp_path / "train" / "{0..1}.tar", columns={"text": "title"})
    assert [entry["text"] for entry in found] == ["title a", "title b"]


def test_members_that_lie_apart(tmp_path: Path) -> None:
    members = {f"{key}.flac": encoded(key, "FLAC") for key in "ab"} | {f"{key}.txt": key.encode() for key in "ab"}
    found, problems = listed("webdataset", put_tar(tmp_path / "x.tar", members))
    assert [entry["id"] for entry in found] == ["a", "b"] and not problems.count


def test_damaged_compressed_and_missing(tmp_path: Path) -> None:
    members = {f"{key}.{kind}": encoded(key) if kind == "wav" else b"x" for key in "ab" for kind in ("txt", "wav")}
    whole = put_tar(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "whole.tar").write_bytes(whole[: whole.index(b"b.wav") + 900])
    put_tar(tmp_path / "z.tar.gz", members, "w:gz")
    found, problems = listed("webdataset", tmp_path)
    assert [entry["id"] for entry in found] == ["a"]
    assert set(problems.errors) == {"bad tar", "no recording", "compressed"} and problems.count == 3
    assert any("unpack it to a .tar" in message for message in errors(problems))
    with pytest.raises(UserError, match=r"y-0\.tar: no such file"):
        listed("webdataset", tmp_path / "y-{0..1}.tar")
