"""Encoding a manifest into codes: what is on disk, restarts, bad input, and a full disk."""

import contextlib
import errno
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_prep.__main__ import main
from data_prep.jobs import codes_writer, encode
from data_prep.jobs.encode import EncodeJob, Line
from data_prep.read_ahead import read_ahead
from data_prep.train_codec_tokenizer import total_seconds
from tests.megatron_files import indexed_dataset
from ttt_dist.audio import Codec, load_codec
from ttt_dist.audio.codec import Codes
from ttt_dist.audio.codecs.melvq import MelVQ
from ttt_dist.util.atomic_files import atomic_write, copy_folder, sha256_file, sha256_folder
from ttt_dist.util.errors import UserError

RATE = 8000
LEARN = ["--codec", "melvq", "--train-codec", "--sample-rate", "8000", "--codebook-size", "16"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with train.jsonl of single files, a piece of one, and joined ones."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for number in range(6):
        seconds = 0.2 + 0.1 * number
        t = np.arange(round(seconds * RATE)) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * number) * t * (1 + t)) + 0.01 * generator.standard_normal(len(t))
        soundfile.write(folder / f"{number}.wav", wave, RATE)
        lines.append({"id": f"u{number}", "audio": f"{number}.wav", "text": str(number), "duration": round(seconds, 3)})
    lines.append({"id": "piece", "audio": "5.wav", "offset": 0.1, "duration": 0.2, "text": "5"})
    lines.append({"id": "joined", "audio": ["0.wav", "1.wav"], "gaps": [0.0, 0.1], "text": "0 1", "duration": 0.6})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(corpus: Path, out: Path, *more: str, manifest: str = "train.jsonl") -> None:
    main(["encode", "--manifest", str(corpus / manifest), "--out", str(out), *more])


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp" in path.name]


def test_codes_on_disk_are_the_codecs(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    run(corpus, out, *LEARN)
    codec = load_codec(out / "codec")
    dataset = indexed_dataset().IndexedDataset(str(out / "part-00000"))
    meta = json.loads((out / "part-00000.json").read_text())
    entries = [json.loads(line) for line in (out / "part-00000.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in entries] == ["u0", "u1", "u2", "u3", "u4", "u5", "piece", "joined"]
    assert len(dataset) == 8
    assert len(dataset.document_indices) == 9
    waves = [torch.from_numpy(soundfile.read(corpus / f"{n}.wav", dtype="float32")[0]) for n in range(6)]
    waves += [waves[5][800:2400], torch.cat([waves[0], torch.zeros(800), waves[1]])]
    for number, (wave, entry) in enumerate(zip(waves, entries, strict=True)):
        assert dataset[number].dtype == np.int32
        assert (dataset[number] == codec.encode([wave])[0]).all()
        parts = [entry["audio"]] if isinstance(entry["audio"], str) else entry["audio"]
        assert all((out / part).is_file() for part in parts)
    assert meta["codec"]["hash"] == codec.hash
    assert meta["counts"]["utterances"] == 8
    assert meta["counts"]["codes"] == sum(map(len, dataset)) == sum(-(-len(wave) // 320) for wave in waves)
    assert meta["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in (out / f"part-00000.{kind}" for kind in ("bin", "idx", "jsonl"))
    }
    assert not temporary_files(tmp_path)


def test_the_same_bytes_again_and_with_the_codec_given(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "a", *LEARN, "--codec-out", str(tmp_path / "codec"))
    run(corpus, tmp_path / "b", "--codec", f"melvq:{tmp_path / 'codec'}")
    for kind in ("bin", "idx", "jsonl"):
        name = f"part-00000.{kind}"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert load_codec(tmp_path / "a" / "codec").hash == load_codec(tmp_path / "b" / "codec").hash


def test_a_finished_part_is_kept_and_a_damaged_one_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "codes"
    run(corpus, out, *LEARN)
    before = sha256_folder(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(corpus, out, *LEARN)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    (out / "part-00000.bin").write_bytes(b"broken")
    run(corpus, out, *LEARN)
    assert sha256_folder(out) == before


def test_where_a_codec_is_learnt_to(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written \(Not a directory\); choose another place"):
        run(corpus, tmp_path / "a", *LEARN, "--codec-out", str(tmp_path / "file"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    run(corpus, tmp_path / "a", *LEARN, "--codec-out", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert load_codec(tmp_path / "scratch").hash == load_codec(tmp_path / "a" / "codec").hash
    assert not temporary_files(tmp_path)


def test_other_inputs_are_not_mixed_in(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    run(corpus, out, *LEARN)
    with pytest.raises(UserError, match="learnt from something else"):
        run(corpus, out, *LEARN, "--seed", "1")
    run(corpus, tmp_path / "other", *LEARN, "--seed", "1")
    with pytest.raises(UserError, match=r"codes/codec: holds another codec"):
        run(corpus, out, "--codec", str(tmp_path / "other" / "codec"))
    (corpus / "more.jsonl").write_text('{"audio": "0.wav", "text": "0"}\n')
    with pytest.raises(UserError, match=r"part-00000\.json: was made from another manifest"):
        run(corpus, out, "--codec", str(out / "codec"), manifest="more.jsonl")
    (out / "part-00000.json").unlink()  # not complete: but another part may stand on the codec
    with pytest.raises(UserError, match="holds another codec"):
        run(corpus, out, "--codec", str(tmp_path / "other" / "codec"))


def test_bad_audio_and_lines_are_named_and_the_rest_encoded(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "1.wav").write_bytes(b"no audio")
    (corpus / "2.wav").write_bytes(b"")
    outside = json.dumps({"audio": "/etc/hostname", "text": "secret"})
    with open(corpus / "train.jsonl", "a") as file:
        file.write("{broken\n" + outside + "\n")
    out = tmp_path / "codes"
    with pytest.raises(UserError, match=r"5 bad files or lines.*other 5 utterances were encoded"):
        run(corpus, out, *LEARN)
    told = capsys.readouterr().err
    for place, name in [(2, "1.wav"), (3, "2.wav"), (8, "1.wav"), (9, "is not JSON"), (10, "lies outside")]:
        assert any(f"train.jsonl:{place}: " in line and name in line for line in told.splitlines()), place
    assert len(indexed_dataset().IndexedDataset(str(out / "part-00000"))) == 5
    with pytest.raises(UserError, match="5 bad files or lines"):  # a finished part does not forget
        run(corpus, out, *LEARN)
    run(corpus, out, *LEARN, "--max-errors", "5")


def test_nothing_to_encode_is_an_error_and_leaves_no_part(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", *LEARN)
    (corpus / "bad.jsonl").write_text('{"audio": "missing.wav", "text": "x"}\n')
    with pytest.raises(UserError, match="none of its utterances"):
        run(corpus, tmp_path / "codes", "--codec", str(tmp_path / "first" / "codec"), manifest="bad.jsonl")
    assert not list((tmp_path / "codes").glob("*part*"))
    with pytest.raises(UserError, match=r"absent.jsonl: cannot be read"):
        run(corpus, tmp_path / "codes", "--codec", str(tmp_path / "first" / "codec"), manifest="absent.jsonl")


def test_a_full_disk_is_named_and_leaves_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, tmp_path / "first", *LEARN)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(codes_writer, "write_entry", full)
    with pytest.raises(UserError, match=r"part-00000\.jsonl: no space left"):
        run(corpus, tmp_path / "codes", "--codec", str(tmp_path / "first" / "codec"))
    assert not list((tmp_path / "codes").glob("*part*"))
    assert not temporary_files(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_device_that_is_full_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("before")
    with (
        pytest.raises(UserError, match=r"file\.json: no space left"),
        atomic_write(tmp_path / "file.json"),
        open("/dev/full", "wb") as device,
    ):
        device.write(b"x" * 100_000)
    assert (tmp_path / "file.json").read_text() == "before"
    assert not temporary_files(tmp_path)


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with contextlib.suppress(RuntimeError), atomic_write(tmp_path / "a") as file:
        file.write("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "before"
    assert not temporary_files(tmp_path)
    with atomic_write(tmp_path / "a") as file:
        file.write("after")
    assert (tmp_path / "a").read_text() == "after"


def test_copied_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x").write_text("1")
    copy_folder(tmp_path / "a", tmp_path / "b")
    assert sha256_folder(tmp_path / "a") == sha256_folder(tmp_path / "b")
    copy_folder(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "deep" / "x").write_text("2")
    with pytest.raises(UserError, match="differs"):
        copy_folder(tmp_path / "a", tmp_path / "b")


class LengthCodec(Codec):
    """Its one code is the waveform's length; notes its batches."""

    name, sample_rate, frame_rate, codebook_size, hash = "length", RATE, 0.01, 10**6, "length"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        self.batches.append([len(wave) for wave in waves])
        return [np.array([len(wave)], np.int32) for wave in waves]

    def decode(self, codes: Codes) -> Tensor:
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        folder.mkdir(parents=True)
        (folder / "codec.json").write_text(json.dumps(asdict(self.info)))


@pytest.fixture
def length_codec(monkeypatch: pytest.MonkeyPatch) -> LengthCodec:
    codec = LengthCodec()
    monkeypatch.setattr("ttt_dist.audio.load_codec", lambda *_, **__: codec)
    return codec


def lengths_of(corpus: Path, seconds: list[float]) -> list[dict[str, Any]]:
    """Files of these lengths, and the lines of a manifest without durations."""
    for number, length in enumerate(seconds):
        soundfile.write(corpus / f"long{number}.wav", np.full(round(length * RATE), 0.1), RATE)
    return [{"id": f"n{number}", "audio": f"long{number}.wav", "text": "x"} for number in range(len(seconds))]


def write_lines(corpus: Path, lines: list[dict[str, Any]]) -> None:
    (corpus / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


SECONDS = [0.3, 0.01, 0.7, 0.02, 1.5, 0.3, 0.31, 0.05]


def test_a_part_is_encoded_by_length_and_written_in_the_order_of_the_manifest(
    corpus: Path, tmp_path: Path, length_codec: LengthCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WINDOW_SECONDS", 0.5)
    write_lines(corpus, lengths_of(corpus, SECONDS))
    run(corpus, tmp_path / "codes", "--codec", "length:x")
    found = indexed_dataset().IndexedDataset(str(tmp_path / "codes" / "part-00000"))
    assert [int(found[number][0]) for number in range(8)] == [round(length * RATE) for length in SECONDS]
    assert length_codec.batches == [[12000], [5600], [2480, 2400], [2400, 400, 160, 80]]  # the lengths are the headers'


def test_durations_decide_the_batches_alone(
    corpus: Path, tmp_path: Path, length_codec: LengthCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right or wrong, or a thousand hours: codes and memory follow what is read."""
    monkeypatch.setattr(encode, "WINDOW_SECONDS", 0.5)
    lines = lengths_of(corpus, SECONDS)
    contents = []
    for name, durations in (("right", SECONDS), ("wrong", [1.0, 3.6e6, 0.1, 0.01, 0.0, 2.0, 3.0, 4.0])):
        write_lines(corpus, [line | {"duration": seconds} for line, seconds in zip(lines, durations, strict=True)])
        run(corpus, tmp_path / name, "--codec", "length:x")
        contents.append([(tmp_path / name / f"part-00000.{kind}").read_bytes() for kind in ("bin", "idx")])
    assert contents[0] == contents[1]
    assert length_codec.batches[:4] == [[12000], [5600], [2480, 2400], [2400, 400, 160, 80]]
    assert length_codec.batches[4:] == [[80, 400, 2480, 2400], [2400, 5600], [160, 12000]]


def test_a_duration_in_milliseconds_is_noted(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    lines[2]["duration"] *= 1000
    lines[-1]["duration"] += 0.4  # as an MP3's header guesses
    write_lines(corpus, lines)
    run(corpus, tmp_path / "codes", *LEARN)
    notes = json.loads((tmp_path / "codes" / "part-00000.json").read_text())["notes"]
    assert notes == {encode.OFF: {"count": 1, "places": [f"{corpus}/train.jsonl:3: u2"]}}
    assert "milliseconds" in capsys.readouterr().err


def test_rows_of_a_table_are_read_in_their_order(corpus: Path) -> None:
    job = EncodeJob(ranges=[], codec="", codebooks=None, out=corpus, audio_root=None)
    lines = [
        Line(place="a", entry={"audio": "x.wav", "duration": 2.0}),
        Line(place="b", entry={"audio": "t.parquet", "member": {"row": 1, "column": "audio"}, "duration": 1.0}),
        Line(place="c", entry={"audio": "x.wav", "duration": 3.0}),
        Line(place="d", entry={"audio": "t.parquet", "member": {"row": 2, "column": "audio"}, "duration": 5.0}),
        Line(place="e", entry={"audio": "x.tar", "member": {"offset": 0, "size": 9}, "duration": 4.0}),
        Line(place="f", entry={"audio": "x.tar", "member": {"offset": 0, "size": 9}}),
        Line(place="g", entry={"segments": [{"audio": "x.wav", "duration": 1.0}, {"audio": "y.wav", "duration": 2.5}]}),
    ]
    assert [line.place for line in sorted(lines, key=job._turn)] == ["b", "d", "e", "c", "g", "a", "f"]


def test_problems_are_told_in_the_order_of_the_manifest(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, tmp_path / "first", *LEARN)
    lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    broken = [{"audio": "gone.wav", "text": "x", "duration": float(n)} for n in (1, 9, 5)]
    for place, line in zip((0, 3, 9), [*broken[:2], {"id": "u0", **broken[2]}], strict=True):
        lines.insert(place, line)
    write_lines(corpus, lines)
    run(corpus, tmp_path / "a", "--codec", str(tmp_path / "first" / "codec"), "--max-errors", "3")
    problems = json.loads((tmp_path / "a" / "part-00000.json").read_text())["problems"]
    assert [problem.split("jsonl:")[1].split(":")[0] for problem in problems] == ["1", "4", "10"]
    assert "came before" in problems[2]


def test_windows_bound_what_is_in_memory(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, tmp_path / "a", *LEARN)
    monkeypatch.setattr(encode, "WINDOW_SECONDS", 0.5)
    run(corpus, tmp_path / "b", "--codec", str(tmp_path / "a" / "codec"))
    assert (tmp_path / "a" / "part-00000.bin").read_bytes() == (tmp_path / "b" / "part-00000.bin").read_bytes()
    assert not temporary_files(tmp_path)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=30)
def test_reading_ahead_keeps_the_order_and_its_bound(sizes: list[int], most: int, threads: int) -> None:
    lock = threading.Lock()
    held = [0]

    def read(size: int) -> list[int]:
        with lock:
            assert held[0] < most + threads * 9  # and what was taken, but not yet counted as such
            held[0] += size
        return [size]

    def taken(results: Iterator[list[int]]) -> Iterator[int]:
        for (size,) in results:
            with lock:
                held[0] -= size
            yield size

    with read_ahead(sizes, read, sum, most, threads, lambda: None) as results:
        assert list(taken(results)) == sizes


def test_reading_ahead_tells_an_error_at_its_place_and_stops() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise MemoryError("here")
        return number

    before = threading.active_count()
    with read_ahead(range(100), read, int, 5, 3, lambda: None) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(MemoryError, match="here"):
            next(results)
    with read_ahead(range(1, 100), read, int, 5, 3, lambda: None) as results:
        assert next(results) == 1
    assert threading.active_count() == before


def test_only_melvq_can_be_learnt(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(corpus, tmp_path / "x", "--codec", "glm4voice:somewhere", "--train-codec")
    with pytest.raises(UserError, match="smaller codebook"):
        run(corpus, tmp_path / "x", *LEARN[:-1], "4096")
    assert MelVQ.name == "melvq"
    assert total_seconds(corpus / "train.jsonl") == pytest.approx(3.5)
