"""Emilia in the three layouts it comes in: JSONL, pairs of files, tars."""

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.corpora import SECONDS, assert_sounds_like, encoded, errors, hertz, listed, put, record


def emilia_object(name: str, **fields: Any) -> dict[str, Any]:
    speaker = name.rpartition("_")[0]
    wav = f"{name[:9]}/{speaker}/mp3/{name}.mp3"
    return {
        "id": name,
        "wav": wav,
        "text": f" {name} spoken",
        "duration": SECONDS,
        "speaker": speaker,
        "language": "en",
        "dnsmos": 3.2927,
        **fields,
    }


def emilia_entry(name: str, audio: Path) -> dict[str, Any]:
    return {
        "id": name,
        "text": f"{name} spoken",
        "duration": SECONDS,
        "lang": "en",
        "speaker": name.rpartition("_")[0],
        "dnsmos": 3.2927,
        "audio": str(audio),
    }


NAMES = [f"EN_B00000_S00000_W{number:06d}" for number in range(4)]


def test_emilia_jsonl(tmp_path: Path) -> None:
    objects = [emilia_object(name) for name in NAMES]
    for number in (0, 1):
        record(tmp_path / "EN" / objects[number]["wav"])
    objects[1].pop("duration")
    lines = [json.dumps(item) for item in objects]
    put(
        tmp_path / "EN" / "EN_B00000.jsonl",
        *lines[:3],
        "{",
        '{"id": "x"}',
        b"\xff",
        json.dumps({**objects[3], "wav": 3}),
    )
    found, problems = listed("emilia", tmp_path)
    assert found[0] == emilia_entry(NAMES[0], tmp_path / "EN" / objects[0]["wav"])
    assert [entry["id"] for entry in found] == NAMES[:2]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert 0.25 < found[1]["duration"] < 0.45  # from the header
    told = errors(problems)
    assert len(told) == problems.count == 5
    for number, reason in [(3, "no such file"), (4, "not JSON"), (5, "'id' or no 'text'"), (6, "UTF-8"), (7, "'wav'")]:
        assert any(f"EN_B00000.jsonl:{number}: " in message and reason in message for message in told)


def test_emilia_pairs(tmp_path: Path) -> None:
    folder = tmp_path / "EN-B000000"
    record(folder / f"{NAMES[0]}.mp3")
    yodas = emilia_object(NAMES[0], _id=NAMES[0])
    del yodas["id"], yodas["wav"]
    put(folder / f"{NAMES[0]}.json", json.dumps(yodas))
    put(folder / f"{NAMES[1]}.json", json.dumps(emilia_object(NAMES[1])))
    found, problems = listed("emilia", tmp_path)
    assert found == [emilia_entry(NAMES[0], folder / f"{NAMES[0]}.mp3")]
    assert_sounds_like(found[0], NAMES[0], tmp_path)
    assert errors(problems) == [f"{folder}/{NAMES[1]}.json: has no recording beside it; fetch it, or remove the file"]


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_emilia_tar(tmp_path: Path) -> None:
    path = tmp_path / "EN" / "EN-B000000.tar"
    path.parent.mkdir()
    objects = [json.dumps(emilia_object(name)).encode() for name in NAMES]
    with tarfile.open(path, "w") as tar:
        add_member(tar, f"{NAMES[0]}.mp3", encoded(NAMES[0], "MP3"))
        add_member(tar, f"{NAMES[0]}.json", objects[0])
        add_member(tar, f"{NAMES[1]}.json", objects[1].replace(b'"duration": 0.3, ', b""))
        add_member(tar, "README.md", b"about")
        add_member(tar, f"{NAMES[1]}.mp3", encoded(NAMES[1], "MP3"))
        add_member(tar, f"{NAMES[2]}.json", objects[2])
        add_member(tar, f"{NAMES[3]}.json", b"\xff")
        add_member(tar, f"{NAMES[3]}.mp3", encoded(NAMES[3], "MP3"))
        add_member(tar, "alone.mp3", b"")
    found, problems = listed("emilia", tmp_path)
    assert found[0] | {"member": None} == emilia_entry(NAMES[0], path) | {"member": None}
    with tarfile.open(path) as tar:
        for entry in found:
            member = tar.getmember(f"{entry['id']}.mp3")
            assert entry["member"] == {"offset": member.offset_data, "size": member.size}
    assert [entry["id"] for entry in found] == NAMES[:2]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert errors(problems) == [
        f"{path}: member {NAMES[3]}.json: is not UTF-8 (invalid start byte); convert the file",
        f"{path}: member {NAMES[2]} has no recording beside it; fetch the file again",
        f"{path}: member alone has no object beside it; fetch the file again",
    ]


def test_emilia_tars_that_cannot_be_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in NAMES[:2]:
            add_member(tar, f"{name}.json", json.dumps(emilia_object(name)).encode())
            add_member(tar, f"{name}.mp3", encoded(name, "MP3"))
        end = tar.offset
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: end - 700])
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        add_member(tar, "x.mp3", b"x")
    put(tmp_path / "c.tar", "no tar")
    found, problems = listed("emilia", tmp_path)
    assert [entry["id"] for entry in found] == NAMES[:1]  # the second is cut off
    told = errors(problems)
    assert any(f"a.tar: is damaged or no tar (it ends within member {NAMES[1]}.mp3)" in message for message in told)
    assert any("b.tar.gz: is compressed" in message for message in told)
    assert any("c.tar: is damaged or no tar" in message for message in told)


def tar_of(path: Path, number: int, form: int = tarfile.DEFAULT_FORMAT) -> bytes:
    """An archive of so many pairs."""
    with tarfile.open(path, "w", format=form) as tar:
        for name in range(number):
            add_member(tar, f"ü{name}.json", json.dumps(emilia_object(str(name))).encode())
            add_member(tar, f"ü{name}.mp3", b"x" * 700)
    return path.read_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_emilia_tars_are_listed_whole_or_named(tmp_path: Path, form: int) -> None:
    """Any byte of any header changed, or the end gone: what is no longer listed is never without a word."""
    path, random = tmp_path / "a.tar", Random(0)
    whole = tar_of(path, 4, form)
    assert listed("emilia", tmp_path)[1].count == 0
    for _ in range(400):
        data = bytearray(whole)
        data[512 * random.randrange(len(data) // 512) + random.randrange(512)] ^= 1 << random.randrange(8)
        path.write_bytes(data if random.random() < 0.9 else data[: random.randrange(len(data))])
        found, problems = listed("emilia", tmp_path)
        assert len(found) == 4 or problems.count


def test_emilia_tars_end_as_archives_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = tar_of(path, 50)
    with tarfile.open(path) as tar:
        header = tar.getmembers()[20].offset
        end = tar.getmembers()[40].offset
    damaged = whole[:header] + bytes([whole[header] ^ 1]) + whole[header + 1 :]
    for data, number, reason in [
        (whole.rstrip(b"\0"), 50, ""),
        (whole + bytes(10**6), 50, ""),
        (whole + whole, 100, ""),
        (damaged, 10, f"the header at byte {header:,} is no header"),
        (whole[:end], 20, f"it has no end: something is missing from byte {end:,} on"),
        (whole[:end] + bytes(150), 20, "it has no end"),
        (whole + b"x" * 999, 50, f"the header at byte {len(whole):,} is no header"),
    ]:
        padded = data + bytes(-len(data) % 512 + 512) if data == whole.rstrip(b"\0") else data
        path.write_bytes(padded)
        found, problems = listed("emilia", tmp_path)
        assert len(found) == number
        assert [message for message in errors(problems) if reason not in message] == []
        assert problems.count == bool(reason)


def test_the_pitches_of_these_tests_differ() -> None:
    assert len({hertz(name) for name in NAMES}) == len(NAMES)
