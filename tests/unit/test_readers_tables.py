"""Readers of tables: captions, tables of one's own, and data sets of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.corpora import RATE, SECONDS, assert_sounds_like, encoded, errors, listed, put, record
from ttt_dist.audio import UtteranceReader
from ttt_dist.manifest.delimited import read_rows
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

datasets.disable_progress_bars()

# Captions


def test_clotho(tmp_path: Path) -> None:
    names = ["Distorted AM Radio noise.wav", "rain #2 (long).wav"]
    for name in names:
        record(tmp_path / "development" / name)
    record(tmp_path / "evaluation" / names[0], name="another")
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    put(
        tmp_path / "clotho_captions_development.csv",
        header,
        f'{names[0]},"A muddled noise, of broken channel","He said ""no""",three,four,five',
        f"{names[1]},Rain falls,,It rains,Rain,Water",
        "lost.wav,a,b,c,d,e",
        "too,few",
        b"\xff.wav,a,b,c,d,e",
        f"{names[0]},,,,,",
    )
    put(tmp_path / "clotho_captions_evaluation.csv", header, f"{names[0]},one,two,three,four,five")
    put(tmp_path / "clotho_metadata_development.csv", "file_name,keywords,license", b"x.wav,caf\xe9,y")
    found, problems = listed("captions", tmp_path)
    assert found[0] == {
        "id": "development-Distorted AM Radio noise-1",
        "audio": str(tmp_path / "development" / names[0]),
        "text": "A muddled noise, of broken channel",
        "lang": "en",
        "split": "development",
        "duration": SECONDS,
    }
    assert found[1]["text"] == 'He said "no"'
    assert [entry["id"].rpartition(" ")[2] for entry in found[5:9]] == [f"(long)-{n}" for n in (1, 3, 4, 5)]
    assert [entry["split"] for entry in found] == ["development"] * 9 + ["evaluation"] * 5
    for entry in found:
        name = "another" if entry["split"] == "evaluation" else Path(entry["audio"]).stem
        assert_sounds_like(entry, name, tmp_path)
    table = f"{tmp_path}/clotho_captions_development.csv"
    assert problems.skipped["table without captions"].places == [f"{tmp_path}/clotho_metadata_development.csv"]
    assert problems.skipped["empty caption"].places == [f"{table}:3: caption_2"]
    told = errors(problems)
    assert len(told) == problems.count == 4
    for number, reason in [(4, "lost.wav: no such recording"), (5, "2 columns"), (6, "UTF-8"), (7, "no caption")]:
        assert any(f"{table}:{number}: " in message and reason in message for message in told), told
    single, _ = listed("captions", tmp_path / "clotho_captions_evaluation.csv")
    assert [entry["id"] for entry in single] == [f"evaluation-Distorted AM Radio noise-{n}" for n in range(1, 6)]


def test_audiocaps_and_other_captions(tmp_path: Path) -> None:
    record(tmp_path / "wavs" / "Yr1nicOVtvkQ.wav")
    record(tmp_path / "wavs" / "abc_30.flac")
    put(
        tmp_path / "train.csv",
        "audiocap_id,youtube_id,start_time,caption",
        "91139,r1nicOVtvkQ,130,A woman talks",
        "58146,abc,30,Gunshots",
        "58147,gone,30,Nothing",
    )
    found, problems = listed("captions", tmp_path / "train.csv")
    assert [(entry["id"], entry["text"]) for entry in found] == [
        ("train-Yr1nicOVtvkQ-2", "A woman talks"),
        ("train-abc_30-3", "Gunshots"),
    ]
    for entry in found:
        assert_sounds_like(entry, Path(entry["audio"]).stem, tmp_path)
    assert problems.count == 1
    put(tmp_path / "macs.tsv", "sound\tsaid", "wavs/abc_30.flac\tbirds sing", "\tnothing")
    found, problems = listed("captions", tmp_path / "macs.tsv", columns={"audio": "sound", "text": "said"})
    assert [(entry["id"], entry["text"]) for entry in found] == [("macs-abc_30-2", "birds sing")]
    assert "names no recording" in errors(problems)[0]


# Tables of one's own


def test_rows_of_csv_have_their_place(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b"\xef\xbb\xbfa, b", "1,2", "", '"x\ny",3', '"open', "last,")
    problems = Problems(told=0)
    assert list(read_rows(path, problems, ",")) == [
        (f"{path}:2", {"a": "1", "b": "2"}),
        (f"{path}:5", {"a": "x\ny", "b": "3"}),
        (f"{path}:7", {"a": "last", "b": ""}),
    ]
    assert len(errors(problems)) == 1 and errors(problems)[0].startswith(f"{path}:6: cannot be read as a row")


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_tables_as_text(tmp_path: Path, kind: str) -> None:
    for name in "ab":
        record(tmp_path / "wav" / f"{name}.flac")
    rows: list[dict[str, Any]] = [
        {"clip": "wav/a.flac", "words": " hello, world ", "who": "ann", "duration": 0.25, "part": "train"},
        {"clip": "wav/b.flac", "words": "piece", "who": "bob", "duration": "", "part": "test"},
        {"clip": "wav/c.flac", "words": "lost", "who": "", "duration": 1, "part": ""},
        {"clip": "wav/a.flac", "words": "", "who": "ann", "duration": 0.3, "part": ""},
        {"clip": "wav/a.flac", "words": "x", "who": "ann", "duration": "long", "part": ""},
        {"clip": "", "words": "x", "who": "ann", "duration": 0.3, "part": ""},
    ]
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        comma = "," if kind == "csv" else "\t"
        quoted = [[f'"{value}"' if comma in str(value) else str(value) for value in row.values()] for row in rows]
        lines = [comma.join(rows[0]), *(comma.join(values) for values in quoted)]
    path = put(tmp_path / f"mine.{kind}", *lines, b"\xff")
    columns = {"audio": "clip", "text": "words", "speaker": "who", "split": "part"}
    found, problems = listed("table", path, columns=columns, lang="en")
    first = 1 if kind == "jsonl" else 2
    assert found[0] == {
        "id": f"mine-{first}",
        "audio": str(tmp_path / "wav/a.flac"),
        "text": "hello, world",
        "speaker": "ann",
        "split": "train",
        "lang": "en",
        "duration": 0.25,  # as the table has it
    }
    assert [(entry["text"], entry["duration"]) for entry in found[1:]] == [("piece", SECONDS)]
    for entry in found:
        assert_sounds_like(entry, Path(entry["audio"]).stem, tmp_path)
    told = errors(problems)
    assert len(told) == problems.count == 5
    for number, reason in [
        (2, "no such file"),
        (3, "neither text nor"),
        (4, "'long', not seconds"),
        (5, "names no rec"),
    ]:
        assert any(f"{path}:{first + number}: " in message and reason in message for message in told), told
    assert [entry["text"] for entry in listed("table", path, columns=columns, split="test")[0]] == ["piece"]
    with pytest.raises(UserError, match=r"--columns text=nothing: .* has no such column, but clip, words"):
        listed("table", path, columns={"text": "nothing"})
    with pytest.raises(UserError, match=r"no column is known to hold 'audio'; name it by --columns audio=COLUMN"):
        listed("table", path)


def test_a_table_of_known_columns_needs_no_mapping(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    put(tmp_path / "t.tsv", "id\tpath\tsentence\tclient_id\toffset\tduration", "u1\ta.wav\thi\tann\t0.1\t0.1")
    found, problems = listed("table", tmp_path / "t.tsv")
    assert found == [
        {"id": "u1", "audio": str(tmp_path / "a.wav"), "text": "hi", "speaker": "ann", "offset": 0.1, "duration": 0.1}
    ]
    assert not problems.count


# Hugging Face

FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(sampling_rate=RATE),
        "sentence": datasets.Value("string"),
        "id": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=["rain", "dog"]),
    }
)
NAMES = ["one", "two", "three", "four", "five"]


def cells(folder: Path, embedded: bool) -> list[dict[str, Any]]:
    if embedded:
        return [{"bytes": encoded(name, "FLAC"), "path": f"{name}.flac"} for name in NAMES]
    return [{"bytes": None, "path": str(record(folder / f"{name}.flac").relative_to(folder))} for name in NAMES]


def table(audio: list[dict[str, Any]]) -> pa.Table:
    columns = {"audio": audio, "sentence": [f"{name} " for name in NAMES], "id": [7] * 5, "label": [0, 1, 0, 1, -1]}
    return pa.table(columns, schema=FEATURES.arrow_schema)


def write_layout(folder: Path, layout: str) -> Path:
    """A data set of NAMES in one of the layouts; the folder that a user would name."""
    if layout == "save_to_disk":
        datasets.Dataset(table(cells(folder, True))).save_to_disk(folder, num_shards=2)
    elif layout == "dict":
        datasets.DatasetDict(train=datasets.Dataset(table(cells(folder, True)))).save_to_disk(folder)
    elif layout in ("bytes", "paths"):
        (folder / "data").mkdir(parents=True)
        rows = table(cells(folder, layout == "bytes"))
        for number, (start, count) in enumerate([(0, 3), (3, 2)]):
            path = folder / "data" / f"train-{number:05d}-of-00002.parquet"
            parquet.write_table(rows.slice(start, count), path, row_group_size=2)
    else:
        for name in NAMES:
            record(folder / "train" / f"{name}.flac")
        rows = [{"file_name": f"{name}.flac", "sentence": f"{name} ", "label": "rain"} for name in NAMES]
        if layout == "metadata.csv":
            lines = ["file_name,sentence,label", *(",".join(row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        put(folder / "train" / layout, *lines)
    return folder


LAYOUTS = ["save_to_disk", "dict", "bytes", "paths", "metadata.csv", "metadata.jsonl"]


def test_all_layouts_of_hugging_face_give_the_same_waveforms(tmp_path: Path) -> None:
    waves: dict[str, list[np.ndarray]] = {}
    for layout in LAYOUTS:
        folder = write_layout(tmp_path / layout, layout)
        found, problems = listed("hf", folder)
        assert not problems.count, errors(problems)
        assert [entry["text"] for entry in found] == NAMES
        assert [entry["duration"] for entry in found] == [SECONDS] * 5
        assert {entry.get("split") for entry in found} == {None if layout == "save_to_disk" else "train"}
        assert len({entry["id"] for entry in found}) == 5
        reader = UtteranceReader(folder, RATE)
        waves[layout] = [reader.read(entry).numpy() for entry in found]
        for entry in found:
            assert_sounds_like(entry, entry["text"], folder)
    for layout in LAYOUTS:
        for wave, reference in zip(waves[layout], waves["bytes"], strict=True):
            np.testing.assert_array_equal(wave, reference)


def test_rows_of_hugging_face(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "set", "bytes")
    found, _ = listed("hf", folder, lang="en")
    assert found[4] == {
        "id": "data-train-00001-of-00002-1",
        "audio": str(folder / "data" / "train-00001-of-00002.parquet"),
        "split": "train",
        "text": "five",
        "lang": "en",
        "member": {"row": 1, "column": "audio"},
        "duration": SECONDS,
    }
    assert [entry.get("label") for entry in found] == ["rain", "dog", "rain", "dog", None]
    mapped, _ = listed("hf", folder, columns={"label": "sentence", "topic": "id"})
    assert (mapped[0]["label"], mapped[0]["topic"]) == ("one", "7")
    assert listed("hf", folder, split="test")[1].skipped["not in split test"].count == 2
    with pytest.raises(UserError, match="--columns text=words: .* has no such column, but audio, sentence, id, label"):
        listed("hf", folder, columns={"text": "words"})


def test_bad_rows_of_hugging_face_are_reported(tmp_path: Path) -> None:
    audio = [{"bytes": encoded("a"), "path": None}, {"bytes": b"noise", "path": None}, {"bytes": None, "path": None}]
    audio += [{"bytes": None, "path": "gone.wav"}, {"bytes": encoded("b"), "path": None}]
    path = tmp_path / "test.parquet"
    parquet.write_table(pa.table({"sound": audio, "text": ["a", "b", "c", "d", " "]}), path)
    put(tmp_path / "broken.parquet", "PAR1 but nothing more")
    found, problems = listed("hf", tmp_path)
    assert [(entry["id"], entry["member"]["column"]) for entry in found] == [("test-0", "sound")]
    told = errors(problems)
    assert len(told) == problems.count == 5
    for place, reason in [
        (f"{tmp_path}/broken.parquet: ", "is no Parquet or Arrow file"),
        (f"{path}: row 1 ", "cannot be read as audio"),
        (f"{path}: row 2 ", "holds neither audio nor"),
        (f"{path}: row 3", "gone.wav: no such file"),
        (f"{path}: row 4: ", "neither text nor label"),
    ]:
        assert any(message.startswith(place) and reason in message for message in told), (place, told)
    parquet.write_table(pa.table({"x": audio, "y": audio, "text": list("abcde")}), path)
    with pytest.raises(UserError, match="columns x, y hold audio; choose by --columns audio=COLUMN"):
        listed("hf", tmp_path)
    assert len(listed("hf", tmp_path, columns={"audio": "y"})[0]) == 2


def test_a_saved_data_set_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "state.json", json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(UserError, match=r"state\.json: names files in other folders"):
        listed("hf", tmp_path)
    put(tmp_path / "state.json", "[]")
    with pytest.raises(UserError, match=r"state\.json: is list, not a JSON object"):
        listed("hf", tmp_path)


def test_a_parquet_of_paths_is_a_table_too(tmp_path: Path) -> None:
    record(tmp_path / "wav" / "a.flac")
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"path": ["wav/a.flac"], "text": ["a"], "duration": [0.3]}), path)
    found, _ = listed("table", path)
    assert found == [
        {"id": "t-0", "audio": str(path), "text": "a", "duration": 0.3, "member": {"row": 0, "column": "path"}}
    ]
    assert_sounds_like(found[0], "a", tmp_path)
