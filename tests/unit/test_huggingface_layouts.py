"""Data sets of Hugging Face as they lie about: which split a file is of, names of classes, samples in the table, tags."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data_prep.readers.huggingface import split_of
from data_prep.readers.transcripts import punctuated, unsegmented
from tests.corpora import RATE, assert_sounds_like, encoded, errors, listed, put, record, tone
from ttt_dist.audio import UtteranceReader


def write_rows(path: Path, names: list[str], **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": encoded(name), "path": None} for name in names]
    parquet.write_table(pa.table({"audio": audio, "text": names, **columns}), path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("default/train/0000.parquet", "train"),
        ("en/partial-train/0007.parquet", "train"),
        ("clean/train.360/0000.parquet", "train.360"),
        ("en/validated/0000.parquet", "validated"),
        ("test/0000.parquet", "test"),
        ("train/part-00003.parquet", "train"),
        ("train/data.parquet", "train"),
        ("train/somebody.parquet", "train"),
        ("data/dev-00000-of-00001.parquet", "dev"),
        ("data/validated-00000-of-00001-0a1b.parquet", "validated"),
        ("data/train_clean_100.parquet", "train_clean_100"),
        ("train_3.parquet", "train"),
        ("other.parquet", "other"),
        ("data/0000.parquet", None),
        ("0000.parquet", None),
    ],
)
def test_the_split_of_a_file(name: str, split: str | None) -> None:
    assert split_of(Path("/sets/mine") / name, Path("/sets/mine")) == split


def test_a_split_may_be_the_source() -> None:
    assert split_of(Path("/sets/mine/train/0000.parquet"), Path("/sets/mine/train")) == "train"
    assert split_of(Path("/sets/train-set/x/0000.parquet"), Path("/sets/train-set")) == "x"


def test_configurations_and_splits_stay_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_rows(tmp_path / "default" / split / "0000.parquet", [f"{split} one", f"{split} two"])
    record(tmp_path / "more" / "a.wav")
    found, problems = listed("hf", tmp_path)
    assert [(entry["split"], entry["text"]) for entry in found] == [
        (split, f"{split} {word}") for split in ("test", "train") for word in ("one", "two")
    ]
    assert len({entry["id"] for entry in found}) == 4 and not problems.count
    found, problems = listed("hf", tmp_path, split="train")
    assert {entry["text"] for entry in found} == {"train one", "train two"}


CARDS = {  # `configs:` of a data set's card; all say that part-1 is for testing
    "list": "- config_name: default\n  data_files:\n  - split: train\n    path: data/part-0.*\n  - split: test\n"
    "    path: ['data/part-1.*']",
    "map": "- config_name: all\n  data_files: {train: data/*-0.parquet, test: '**/part-1.parquet'}",
    "folder": "- config_name: x\n  data_dir: data\n  data_files: {test: part-1.parquet, train: '*.parquet'}",
    "no split": "- config_name: x\n  data_files: data/part-0.parquet\n- config_name: y\n  data_files: {test: data/part-1.parquet}",
}


@pytest.mark.parametrize("card", CARDS)
def test_the_card_says_which_files_are_of_which_split(tmp_path: Path, card: str) -> None:
    for number, word in enumerate(("learnt", "held out")):
        write_rows(tmp_path / "data" / f"part-{number}.parquet", [word])
    put(tmp_path / "README.md", f"---\nlicense: mit\nconfigs:\n{CARDS[card]}\n---\n# A data set\n---\n")
    found, problems = listed("hf", tmp_path)
    assert {entry["text"]: entry["split"] for entry in found} == {"learnt": "train", "held out": "test"}
    assert not problems.count
    assert [entry["text"] for entry in listed("hf", tmp_path, split="test")[0]] == ["held out"]


@pytest.mark.parametrize(
    "text",
    [
        "---\nconfigs: [\n---\n",
        "---\nconfigs: 3\n---\n",
        "no front matter",
        "---\nconfigs:\n- data_files: /etc/*\n---\n",
    ],
)
def test_a_card_that_says_nothing_leaves_it_to_the_names(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path / "test" / "0000.parquet", ["one"])
    put(tmp_path / "README.md", text)
    assert [entry["split"] for entry in listed("hf", tmp_path)[0]] == ["test"]


def test_one_metadata_file_above_the_folders_of_the_splits(tmp_path: Path) -> None:
    names = ["train/a.wav", "test/b.wav", "validation/deep/test-c.wav", "clips/d.wav", "e.wav"]
    for name in names:
        record(tmp_path / name)
    put(tmp_path / "metadata.csv", "file_name,text\n" + "".join(f"{name},some words\n" for name in names))
    found, problems = listed("hf", tmp_path)
    assert [entry.get("split") for entry in found] == ["train", "test", "validation", None, None]
    assert not problems.count
    assert len(listed("hf", tmp_path, split="train")[0]) == 1


def test_every_class_label_becomes_its_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "audio": datasets.Audio(),
            "text": datasets.Value("string"),
            "lang": datasets.ClassLabel(names=["cy", "en"]),
            "gender": datasets.ClassLabel(names=["female", "male"]),
            "age": datasets.Value("int64"),
        }
    )
    audio = [{"bytes": encoded(name), "path": None} for name in "abc"]
    columns = {"audio": audio, "text": list("abc"), "lang": [1, 0, None], "gender": [0, 1, -1], "age": [0, 1, 2]}
    parquet.write_table(pa.table(columns, schema=features.arrow_schema), tmp_path / "train.parquet")
    found, _ = listed("hf", tmp_path, columns={"gender": "gender", "age": "age"})
    assert [entry.get("lang") for entry in found] == ["en", "cy", None]
    assert [entry.get("gender") for entry in found] == ["female", "male", None]
    assert [entry["age"] for entry in found] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["float", "double", "int16", "stereo"])
def test_samples_in_the_table_are_the_recording(tmp_path: Path, kind: str) -> None:
    wave = tone("one")
    arrays: dict[str, Any] = {
        "float": pa.array([wave.tolist()], pa.list_(pa.float32())),
        "double": pa.array([wave.tolist()]),
        "int16": pa.array([(wave * 32767).astype(np.int16).tolist()]),
        "stereo": pa.array([[wave.tolist(), wave.tolist()]]),
    }
    audio = pa.StructArray.from_arrays(
        [arrays[kind], pa.array(["gone/one.wav"]), pa.array([RATE])], ["array", "path", "sampling_rate"]
    )
    parquet.write_table(pa.table({"speech": audio, "text": ["one"]}), tmp_path / "train.parquet")
    found, problems = listed("hf", tmp_path)
    assert not problems.count, errors(problems)
    assert found[0]["member"] == {"row": 0, "column": "speech"}
    assert_sounds_like(found[0], "one", tmp_path)
    heard = UtteranceReader(tmp_path, RATE).read(found[0]).numpy()
    np.testing.assert_allclose(heard, wave, atol=1e-4 if kind == "int16" else 0)


def test_samples_that_are_none_cost_their_row(tmp_path: Path) -> None:
    good = {"array": tone("one").tolist(), "sampling_rate": RATE}
    bad = [{"array": [0.0] * 9, "sampling_rate": -5}, {"array": [], "sampling_rate": RATE}]
    parquet.write_table(pa.table({"audio": [good, *bad], "text": list("abc")}), tmp_path / "train.parquet")
    found, problems = listed("hf", tmp_path)
    assert [entry["text"] for entry in found] == ["a"]
    assert problems.count == 2


def test_tags_of_gigaspeech_are_not_spoken(tmp_path: Path) -> None:
    texts = [
        "WELL <COMMA> IT IS <PERIOD>",
        "<MUSIC>",
        "<COMMA> SO <QUESTIONMARK>",
        "<SIL>",
        "NO <EXCLAMATIONPOINT>",
        "a < b",
    ]
    audio = [{"bytes": encoded(str(i)), "path": None} for i in range(len(texts))]
    parquet.write_table(pa.table({"audio": audio, "text": texts}), tmp_path / "train-00000-of-00001.parquet")
    record(tmp_path / "0.wav")
    put(tmp_path / "t.tsv", "path\ttext", *(f"0.wav\t{text}" for text in texts))
    for found, problems in (listed("hf", tmp_path), listed("table", tmp_path / "t.tsv")):
        assert [entry["text"] for entry in found] == ["WELL, IT IS.", ", SO?", "NO!", "a < b"]
        assert {reason: tally.count for reason, tally in problems.skipped.items()} == {
            "no speech: <MUSIC>": 1,
            "no speech: <SIL>": 1,
        }
        assert not problems.count


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("而 对 楼市 成交", "而对楼市成交"),
        ("听 YESTERDAY ONCE MORE 吧", "听YESTERDAY ONCE MORE吧"),
        ("听YESTERDAY ONCE MORE", "听YESTERDAY ONCE MORE"),
        ("HELLO WORLD", "HELLO WORLD"),
        ("〇 々 𠀀 A", "〇々𠀀A"),
        ("안녕 하세요", "안녕 하세요"),
    ],
)
def test_only_spaces_beside_han_characters_go(text: str, spelt: str) -> None:
    assert unsegmented(text) == spelt
    assert punctuated(spelt) == spelt


def test_english_words_of_aishell(tmp_path: Path) -> None:
    text = "听 YESTERDAY ONCE MORE"
    record(tmp_path / "1" / "wav" / "train" / "S0002" / "A.wav")
    put(tmp_path / "1" / "transcript" / "aishell_transcript_v0.8.txt", f"A {text}")
    record(tmp_path / "2" / "data" / "wav" / "C1" / "A.wav")
    put(tmp_path / "2" / "data" / "wav.scp", "A\twav/C1/A.wav")
    put(tmp_path / "2" / "data" / "trans.txt", f"A\t{text}")
    for number in ("1", "2"):
        found, problems = listed(f"aishell{number}", tmp_path / number)
        assert [entry["text"] for entry in found] == ["听YESTERDAY ONCE MORE"]
        assert not problems.count
