"""Manifests of lhotse as its recipes and icefall's write them: cuts, recordings with supervisions, Shar."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpora import RATE, assert_sounds_like, encoded, errors, listed, record, tone, write
from ttt_dist.util.errors import UserError


def put_gz(path: Path, *items: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (item if isinstance(item, str) else json.dumps(item) for item in items)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return path


def recording(name: str, source: str, seconds: float = 0.3, **fields: Any) -> dict[str, Any]:
    return {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": source}],
        "sampling_rate": RATE,
        "num_samples": round(seconds * RATE),
        "duration": seconds,
        "channel_ids": [0],
        **fields,
    }


def supervision(name: str, of: str, start: float, seconds: float, **fields: Any) -> dict[str, Any]:
    known = {"id": name, "recording_id": of, "start": start, "duration": seconds, "channel": 0}
    return known | {"text": f"WORDS OF {name}", "language": "English", "speaker": "1272", **fields}


def cut(
    name: str, start: float, seconds: float, of: dict[str, Any], *supervisions: Any, **fields: Any
) -> dict[str, Any]:
    known = {"id": name, "start": start, "duration": seconds, "channel": 0, "supervisions": list(supervisions)}
    return known | {"recording": of, "type": "MonoCut", **fields}


def test_cuts(tmp_path: Path) -> None:
    wave = tone("long", 2.0)
    wave[: RATE // 2] = tone("first", 0.5)
    write(tmp_path / "download" / "long.flac", wave)
    record(tmp_path / "download" / "short.flac")
    long = recording("long", "download/long.flac", 2.0)
    short = recording("short", str(tmp_path / "download/short.flac"))
    both = write(tmp_path / "download" / "both.flac", np.stack([tone("left", 0.3), tone("right", 0.3)], axis=1))
    stereo = {"type": "file", "channels": [0, 1], "source": str(both)}
    lines = [
        cut("short-0", 0, 0.3, short, supervision("short", "short", 0, 0.3)),
        cut(
            "long-0",
            0.0,
            0.5,
            long,
            supervision("s", "long", 0.0, 0.5, text=None, custom={"texts": ["Mr. A.", "MR A"]}),
        ),
        cut(
            "long-1",
            1.0,
            1.0,
            long,
            supervision("a", "long", 0.0, 0.4),
            supervision("b", "long", 0.5, 0.5),
            supervision("c", "long", 0.8, 1.0),
        ),
        cut(
            "fast",
            0,
            0.3,
            short | {"transforms": [{"name": "Speed", "kwargs": {"factor": 0.9}}]},
            supervision("f", "short", 0, 0.3),
        ),
        {"id": "mix", "type": "MixedCut", "tracks": []},
        cut("none", 0, 0.3, recording("x", "download/x.flac"), supervision("x", "x", 0, 0.3)),
        cut("mute", 0, 0.3, short),
        cut("right", 0, 0.3, short | {"sources": [stereo]}, supervision("right", "short", 0, 0.3), channel=1),
        cut("two", 0, 0.3, short | {"sources": [stereo | {"channels": [0, 1, 2]}]}, channel=[0, 1]),
        cut("url", 0, 0.3, short | {"sources": [{"type": "url", "channels": [0], "source": "http://x/y"}]}),
        {"id": "bad", "start": "x", "duration": 1, "recording": short, "supervisions": [{}]},
        "{",
    ]
    put_gz(tmp_path / "data" / "fbank" / "librispeech_cuts_dev-clean.jsonl.gz", *lines)
    put_gz(tmp_path / "data" / "fbank" / "librispeech_recordings_dev-clean.jsonl.gz", short)
    found, problems = listed("lhotse", tmp_path / "data")
    audio = str(tmp_path / "download/long.flac")
    shared = {"lang": "en", "speaker": "1272", "split": "dev-clean"}
    assert found == [
        {"id": "short-0", "audio": short["sources"][0]["source"], "duration": 0.3, "text": "WORDS OF short", **shared},
        {"id": "long-0", "audio": audio, "offset": 0.0, "duration": 0.5, "text": "Mr. A.", **shared},
        {"id": "a", "audio": audio, "offset": 1.0, "duration": 0.4, "text": "WORDS OF a", **shared},
        {"id": "b", "audio": audio, "offset": 1.5, "duration": 0.5, "text": "WORDS OF b", **shared},
        {"id": "right", "audio": stereo["source"], "channel": 1, "duration": 0.3, "text": "WORDS OF right", **shared},
    ]
    assert_sounds_like(found[1], "first", tmp_path, 0.5)
    assert_sounds_like(found[3], "long", tmp_path, 0.5)
    assert_sounds_like(found[4], "right", tmp_path, 0.3)
    assert {reason: tally.count for reason, tally in problems.skipped.items()} == {
        "beside cuts": 1,
        "supervision cut off by its cut": 1,
        "changed when it is loaded (speed, volume, ...)": 1,
    }
    assert {reason: tally.count for reason, tally in problems.errors.items()} == {
        "mixed cut": 1,
        "no recording": 2,
        "no text": 1,
        "some channels of several": 1,
        "bad line": 2,
    }
    assert all("librispeech_cuts_dev-clean.jsonl.gz:" in message for message in errors(problems))


def test_recordings_and_supervisions(tmp_path: Path) -> None:
    record(tmp_path / "corpus" / "r1.wav", 1.0)
    folder = tmp_path / "manifests"
    put_gz(folder / "aishell_recordings_train.jsonl.gz", recording("r1", "/export/corpus/r1.wav", 1.0))
    lines = [
        supervision("u1", "r1", 0.0, 1.0, language="Chinese", text="你好"),
        supervision("u2", "r1", 0.25, 0.5, language="Chinese", text="好"),
        supervision("u3", "r2", 0.0, 1.0),
    ]
    path = put_gz(folder / "aishell_supervisions_train.jsonl.gz", *lines)
    for source in (folder, path):
        found, problems = listed("lhotse", source, audio_root=tmp_path)
        shared = {"audio": str(tmp_path / "corpus/r1.wav"), "lang": "zh", "speaker": "1272", "split": "train"}
        assert found == [
            {"id": "u1", "duration": 1.0, "text": "你好", **shared},
            {"id": "u2", "offset": 0.25, "duration": 0.5, "text": "好", **shared},
        ]
        assert errors(problems) == [
            f"{path}:3: recording r2 is in no list of recordings; add it, or remove the line",
        ]
    (folder / "aishell_recordings_train.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"aishell_recordings_train\.jsonl\.gz beside it"):
        listed("lhotse", folder)


def test_shar(tmp_path: Path) -> None:
    """Two shards; cuts whose recording is left out have .nodata and .nometa in its place."""
    for shard, names in enumerate((["a", "b/1"], ["c", "d"])):
        folder = tmp_path / "shar" / "train"
        placeholder = {"type": "shar", "channels": [0], "source": ""}
        cuts = [
            cut(name, 0, 0.3, recording(name, "") | {"sources": [placeholder]}, supervision(name, name, 0, 0.3))
            for name in names
        ]
        put_gz(folder / f"cuts.{shard:06d}.jsonl.gz", *cuts)
        with tarfile.open(folder / f"recording.{shard:06d}.tar", "w") as tar:
            for name in names:
                files = (
                    {"flac": encoded(name, "FLAC"), "json": b"{}\n"} if name != "d" else {"nodata": b"", "nometa": b""}
                )
                for suffix, content in files.items():
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    found, problems = listed("lhotse", tmp_path / "shar")
    assert [(entry["id"], entry["split"], entry["duration"]) for entry in found] == [
        ("a", "train", 0.3),
        ("b/1", "train", 0.3),
        ("c", "train", 0.3),
    ]
    for entry in found:
        assert_sounds_like(entry, entry["id"], tmp_path)
    assert len(errors(problems)) == 1 and "d is not in recording.000001.tar" in errors(problems)[0]
