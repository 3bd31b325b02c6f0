"""Bad input on the whole way, by the command's own exit status: named with its place, counted, nothing half-written left."""

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.__main__ import main
from tests.megatron_files import indexed_dataset
from tests.prep_way import RATE, WORDS, make_corpus, steps, walk
from tests.shared_work import in_child
from tests.structures import SHARED, needs_shared
from ttt_dist.data.shards import ShardReader
from ttt_dist.util.console import main_guard

LEARN = ["--codec", "melvq", "--train-codec", "--sample-rate", "8000", "--codebook-size", "16"]


def run(tmp_path: Path, work: Callable[[], None]) -> tuple[int, str]:
    """Exit status and stderr of `work` as a command, in a process of its own."""
    told = tmp_path / "stderr"

    def command() -> None:
        with open(told, "w", buffering=1) as sys.stderr:
            try:
                main_guard(work)
            except SystemExit as end:
                os._exit(int(end.code or 0))

    _, status = os.waitpid(in_child(command), 0)
    return os.waitstatus_to_exitcode(status), told.read_text()


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".lock"))]


def tone(path: Path, seconds: float) -> None:
    t = np.arange(int(RATE * seconds)) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * t * (1 + t)), RATE)


@pytest.mark.slow
def test_bad_lines_and_audio_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(8):
        tone(folder / f"{number}.flac", 1.0)
    content = (folder / "3.flac").read_bytes()
    (folder / "3.flac").write_bytes(content[: len(content) // 2] + os.urandom(len(content) // 2))
    good = [json.dumps({"id": f"u{n}", "audio": f"{n}.flac", "text": WORDS[n]}).encode() for n in range(8)]
    bad = {
        4: b"",  # the corrupt file itself
        9: json.dumps({"audio": "0.flac", "offset": 0.5, "duration": 0, "text": "one"}).encode(),
        10: json.dumps({"audio": "0.flac", "offset": 5.0, "duration": 1.0, "text": "one"}).encode(),
        11: b'{"audio": "1.flac", "text": "caf\xe9"}',
        12: json.dumps({"audio": "../secret.wav", "text": "one"}).encode(),
        13: json.dumps({"id": "u1", "audio": "2.flac", "text": "again"}).encode(),
    }
    (folder / "m.jsonl").write_bytes(b"\n".join([*good, *(bad[n] for n in sorted(bad) if n > 8)]) + b"\n")
    out = tmp_path / "codes"
    command = ["encode", "--manifest", str(folder / "m.jsonl"), *LEARN, "--out", str(out)]
    status, told = run(tmp_path, lambda: main(command))
    assert status == 1
    for line in bad:
        assert f"m.jsonl:{line}: " in told, (line, told)
    assert "6 bad files or lines" in told
    assert len(indexed_dataset().IndexedDataset(str(out / "part-00000"))) == 7
    assert not leftovers(tmp_path)
    assert run(tmp_path, lambda: main([*command, "--max-errors", "6"]))[0] == 0
    tone(folder / "3.flac", 1.0)
    status, told = run(tmp_path, lambda: main([*command, "--max-errors", "5", "--retry"]))
    assert status == 0, told
    assert len(indexed_dataset().IndexedDataset(str(out / "part-00000"))) == 8


@pytest.mark.slow
@pytest.mark.parametrize("step", range(4))
def test_a_full_disk_stops_each_step_and_leaves_nothing(tmp_path: Path, step: int) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make_corpus(corpus, 40)
    commands = list(steps(corpus, out))
    commands.append(
        [*commands[2][:-1], str(out / "shards" / "again")]
    )  # finds tokenizer and codec there: writes shards only
    for command in commands[:step]:
        main(command)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}

    def with_little_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LITTLE[step], LITTLE[step]))
        main(commands[step])

    status, told = run(tmp_path, with_little_space)
    assert status == 1, told
    assert "no space left on the disk while writing it" in told.splitlines()[-1]
    assert not leftovers(tmp_path)
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before - {tmp_path / "stderr"}
    assert not [path for path in made if path.name.startswith(("part-", "train", "again"))]
    walk(corpus, out)
    main(["verify", str(out / "shards" / "train")])


LITTLE = (1500, 3000, 9000, 5000)
"""Bytes that a file may have: enough for what is written before the step's own output."""


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus"
    make_corpus(corpus, 34)
    if os.geteuid() == 0:
        (corpus / "001.wav").unlink()
        (corpus / "001.wav").mkdir()  # root may read everything but this
    else:
        (corpus / "001.wav").chmod(0)
    status, told = run(tmp_path, lambda: main(next(steps(corpus, tmp_path / "out"))))
    assert status == 1
    assert "train.jsonl:2: " in told and "001.wav" in told
    (tmp_path / "file").write_text("no folder")
    command = [
        "manifest",
        "--reader",
        "librispeech",
        "--source",
        str(tmp_path / "file"),
        "--out",
        str(tmp_path / "m.jsonl"),
    ]
    status, told = run(tmp_path, lambda: main(command))
    assert status == 1 and "is no folder" in told


@needs_shared
def test_real_speech_from_parquet_and_from_files_gives_the_same_shards(tmp_path: Path) -> None:
    """fsdd as a Hugging Face data set with an Audio column, bytes in one file and paths in another, and as files."""
    import pyarrow
    from pyarrow import parquet

    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for path in sorted((SHARED / "fsdd" / "recordings").glob("*_1[0-2].wav"))[:60]:
        shutil.copyfile(path, recordings / path.name)
    files = sorted(recordings.glob("*.wav"))
    rows = [
        {
            "audio": {"bytes": path.read_bytes(), "path": path.name} if n % 2 else {"bytes": None, "path": str(path)},
            "text": path.stem.split("_")[0],
            "speaker": path.stem.split("_")[1],
            "name": path.stem,
        }
        for n, path in enumerate(files)
    ]
    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("audio", audio), ("text", "string"), ("speaker", "string"), ("name", "string")])
    features = {"audio": {"sampling_rate": 8000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    for number, part in enumerate((rows[:25], rows[25:])):
        path = tmp_path / "data" / f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(part, schema), path, row_group_size=10)
    listed = {
        "files": ["--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav", "--source", str(recordings)],
        "parquet": ["--reader", "hf", "--source", str(tmp_path / "data"), "--columns", "id=name,speaker=speaker"],
    }
    shards = {}
    codec = tmp_path / "codec"
    for name, reader in listed.items():
        work = tmp_path / name
        main(["manifest", *reader, "--out", str(work / "m.jsonl")])
        learn = [*LEARN, "--codec-out", str(codec)] if name == "files" else ["--codec", f"melvq:{codec}"]
        root = ["--audio-root", str(tmp_path), "--part-size", "16"]
        main(["encode", "--manifest", str(work / "m.jsonl"), *learn, *root, "--out", str(work / "codes")])
        text = ["--train-tokenizer", "--vocab-size", "300", "--name-speaker"]
        main(
            ["compose", "--codes", str(work / "codes"), "--template", "asr,tts", *text, "--out", str(work / "samples")]
        )
        main(["pack", "--samples", str(work / "samples"), "--seq-len", "512", "--out", str(work / "shards" / "train")])
        shards[name] = {suffix: (work / "shards" / f"train{suffix}").read_bytes() for suffix in (".bin", ".idx")}
        assert ShardReader(work / "shards" / "train").meta["counts"]["samples"] == 120
    assert shards["files"] == shards["parquet"]
