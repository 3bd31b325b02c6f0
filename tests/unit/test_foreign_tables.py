"""Tables and manifests as other people write them: quotes that are letters, JSON under any name, compressed files."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpora import errors, listed, put, record
from ttt_dist.evaluation.items import Item, read_items
from ttt_dist.manifest.delimited import MAX_LINES, delimiter_of, read_rows
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.records import read_records
from ttt_dist.manifest.text_files import raw_lines
from ttt_dist.util.errors import UserError

CELL = st.text(st.sampled_from("ab\"', é")).filter(lambda text: text.strip(' "') == text and text)


def rows_of(path: Path) -> tuple[list[dict[str, str]], Problems]:
    problems = Problems(told=0)
    return [row for _, row in read_rows(path, problems, delimiter_of(path))], problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@given(rows=st.lists(st.tuples(CELL, st.text(st.sampled_from("ab\"x '")).map(lambda text: text + "."))))
def test_every_letter_of_a_tsv_is_a_letter(folder: Path, rows: list[tuple[str, str]]) -> None:
    path = put(folder / "a.tsv", "path\ttext", *("\t".join(row) for row in rows))
    found, problems = rows_of(path)
    assert found == [{"path": path, "text": text} for path, text in rows]
    assert not problems.count


@given(rows=st.lists(st.tuples(st.text(max_size=5), st.text(st.sampled_from('ab",\n'), max_size=9)), max_size=5))
def test_what_a_csv_writer_writes_is_read(folder: Path, rows: list[tuple[str, str]]) -> None:
    """But for what cannot be told from a quote that nobody closes: values of many lines, and of lines that are rows."""
    plain = [(name, text.replace("\n", " ")) for name, text in rows if name.isalnum() and text.strip()]
    path = folder / "a.csv"
    for kind in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        with open(path, "w", newline="", encoding="utf8") as file:
            csv.writer(file, quoting=kind).writerows([("path", "text"), *plain])
        found, problems = rows_of(path)
        assert found == [{"path": name, "text": text} for name, text in plain]
        assert not problems.count


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "path;text\na.wav;one\n", "has semicolons between values, where commas belong; save it with commas"),
        ("a.csv", "path\ttext\na.wav\tone\n", "has tabs between values, where commas belong; name it .tsv"),
        ("a.tsv", "path,text\na.wav,one\n", "has commas between values, where tabs belong; name it .csv"),
        ("a.txt", "path|text\na.wav|one\n", "has bars between values, where tabs belong"),
        ("a.tsv", "path\ttext\ra.wav\tone\r", "lines end with CR alone"),
        ("a.csv", "path,text,text\na.wav,one,eins\n", "the header names 'text' twice; rename one"),
    ],
)
def test_a_header_of_another_kind_of_table_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text, newline="")
    with pytest.raises(UserError, match=rf"{name}:1: {told}"):
        rows_of(tmp_path / name)


def test_columns_without_a_name_may_be_many(tmp_path: Path) -> None:
    """A spreadsheet's empty columns."""
    found, problems = rows_of(put(tmp_path / "a.csv", "path,text,,", "a.wav,one,,"))
    assert [(row["path"], row["text"]) for row in found] == [("a.wav", "one")] and not problems.count


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"PK\x03\x04", "a workbook of a spreadsheet; save it as"), (b"\x28\xb5\x2f\xfd", "by zstd.*decompress it"),
        (b"PAR1", "Parquet; name it .parquet"), ("path\ttext\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_is_told_by_its_first_bytes(tmp_path: Path, start: bytes, told: str) -> None:
    (tmp_path / "a.tsv").write_bytes(start + b"\x00\xff" * 50)
    with pytest.raises(UserError, match=rf"a\.tsv: is .*{told}"):
        list(raw_lines(tmp_path / "a.tsv"))
    found, problems = rows_of(tmp_path / "a.tsv")
    assert not found and problems.count == 1


def test_a_tsv_that_encloses_its_header_encloses_all(tmp_path: Path) -> None:
    path = put(tmp_path / "a.tsv", '"path"\t"text"', '"a.wav"\t"he said ""no"""', "b.wav\tplain")
    found, problems = rows_of(path)
    assert [row["text"] for row in found] == ['he said "no"', "plain"]
    assert not problems.count


def test_a_tsv_that_looks_like_csv_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "a.tsv", "path\ttext", 'a.wav\t"he said ""no"""', 'b.wav\t"he said ""no"""')
    found, _ = rows_of(path)
    assert [row["text"] for row in found] == ['"he said ""no"""'] * 2
    assert capsys.readouterr().err.count(f"{path}:2: ") == 1


@pytest.mark.parametrize("last", ["", '"', 'y "'], ids=["never closed", "closed by another", "closed in another value"])
@pytest.mark.parametrize("rows", [3, 9, 3 * MAX_LINES])
def test_a_quote_in_a_csv_that_nobody_closes_costs_its_own_row(tmp_path: Path, rows: int, last: str) -> None:
    lines = [f"{number}.wav,words {number}" for number in range(rows)]
    lines[1] = '1.wav,"quoted from here'
    lines[-1] += last
    path = put(tmp_path / "a.csv", "path,text", *lines)
    found, problems = rows_of(path)
    assert [row["path"] for row in found] == [f"{number}.wav" for number in range(rows) if number != 1]
    assert problems.count == 1 and errors(problems)[0].startswith(f"{path}:3: cannot be read as a row")


def test_captions_and_data_files_keep_every_row_of_a_tsv(tmp_path: Path) -> None:
    for name in "abc":
        record(tmp_path / f"{name}.wav")
    said = ['"Start', "go on", '5" of rain']
    path = put(
        tmp_path / "a.tsv", "file_name\tcaption", *(f"{n}.wav\t{text}" for n, text in zip("abc", said, strict=True))
    )
    for reader in ("table", "captions"):
        found, problems = listed(reader, path)
        assert [entry["text"] for entry in found] == said and not problems.count
    assert [item.entry["caption"] for item in read_items(path, dict) if isinstance(item, Item)] == said


@pytest.mark.parametrize("name", ["train_manifest.json", "train_manifest", "m.ndjson", "m.jsonl", "m.JSON"])
def test_json_lines_under_any_name(tmp_path: Path, name: str) -> None:
    """NeMo writes JSON lines as .json."""
    record(tmp_path / "a.wav")
    lines = [{"audio_filepath": "a.wav", "duration": 0.3, "text": text} for text in ("one", "two")]
    path = put(tmp_path / name, *map(json.dumps, lines), "{broken")
    found, problems = listed("table", path)
    assert [(entry["text"], entry["audio"]) for entry in found] == [
        (text, str(tmp_path / "a.wav")) for text in ("one", "two")
    ]
    assert problems.count == 1 and errors(problems)[0].startswith(f"{path}:3: is not JSON")
    items = read_items(path, dict)
    assert [item.entry["text"] for item in items[:2] if isinstance(item, Item)] == ["one", "two"]
    assert len(items) == 3


def test_json_lists_are_tables_too(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    rows = [{"path": "a.wav", "text": "one"}, 7, {"path": "a.wav", "text": "two"}]
    for content in (
        json.dumps(rows),
        json.dumps(rows, indent=1),
        json.dumps({"data": rows}),
        json.dumps({"data": rows}, indent=1),
    ):
        path = put(tmp_path / "a.json", content)
        found, problems = listed("table", path)
        assert [entry["text"] for entry in found] == ["one", "two"]
        assert problems.count == 1 and "is int, not an object" in errors(problems)[0]
        assert len({entry["id"] for entry in found}) == 2


@pytest.mark.parametrize(("suffix", "packed"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "path,text\na.wav,one\na.wav,two\n"),
        ("a.tsv", "path\ttext\na.wav\tone\na.wav\ttwo\n"),
        ("a.jsonl", '{"path": "a.wav", "text": "one"}\n{"path": "a.wav", "text": "two"}\n'),
        ("a.json", '[{"path": "a.wav", "text": "one"}, {"path": "a.wav", "text": "two"}]'),
    ],
)
def test_compressed_files_are_read(tmp_path: Path, suffix: str, packed: object, name: str, content: str) -> None:
    raw = packed(content.encode())  # type: ignore[operator]
    record(tmp_path / "a.wav")
    for path in (tmp_path / f"{name}.{suffix}", tmp_path / name):
        path.write_bytes(raw)
        found, problems = listed("table", path)
        assert [entry["text"] for entry in found] == ["one", "two"] and not problems.count
        assert [item.entry["text"] for item in read_items(path, dict) if isinstance(item, Item)] == ["one", "two"]
    path.write_bytes(raw[:-9])
    problems = Problems(told=0)
    told = ""
    try:
        list(read_records(path, problems))
    except UserError as error:
        told = str(error)
    assert f"{path}: is damaged or cut off" in "".join([told, *errors(problems)])


def test_a_table_that_is_cut_off_within_gzip_keeps_its_rows(tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("path", "text"), *((f"{n}.wav", f"words {n * n * 7919}") for n in range(5000))])
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode())[:-2000])
    found, problems = rows_of(path)
    assert 0 < len(found) < 5000 and problems.count == 1
    assert "is damaged or cut off" in errors(problems)[0]


def test_captions_whose_recordings_lie_elsewhere(tmp_path: Path) -> None:
    """A CSV that was fetched by itself: the sounds lie in a folder beside its own, or where --audio-root says."""
    record(tmp_path / "set" / "audio" / "train" / "rain.wav")
    record(tmp_path / "set" / "audio" / "test" / "rain.wav", name="other")
    record(tmp_path / "set" / "documents" / "dog.wav")
    table = put(tmp_path / "set" / "csv" / "train.csv", "file_name,caption", "rain.wav,It rains", "dog.wav,A dog")
    found, problems = listed("captions", table)
    assert [entry["audio"] for entry in found] == [str(tmp_path / "set/audio/train/rain.wav")]
    assert "dog.wav: no such recording below" in errors(problems)[0] and "--audio-root" in errors(problems)[0]
    away = put(tmp_path / "away" / "train.csv", "file_name,caption", "rain.wav,It rains", "documents/dog.wav,A dog")
    found, problems = listed("captions", away, audio_root=tmp_path / "set")
    assert [entry["text"] for entry in found] == ["It rains", "A dog"] and not problems.count
    both = put(
        tmp_path / "set" / "all.csv", "file_name,caption", "audio/test/rain.wav,It rains", f"{away.parent}/x.wav,X"
    )
    record(away.parent / "x.wav")
    found, problems = listed("captions", both)
    assert [Path(entry["audio"]).relative_to(tmp_path).as_posix() for entry in found] == [
        "set/audio/test/rain.wav",
        "away/x.wav",
    ]
    with pytest.raises(UserError, match="gone: is no folder; correct --audio-root"):
        listed("captions", away, audio_root=tmp_path / "gone")


@pytest.mark.parametrize("reader", ["table", "jsonl"])
def test_a_manifest_apart_from_its_recordings(tmp_path: Path, reader: str) -> None:
    record(tmp_path / "audio" / "a.wav")
    path = put(tmp_path / "lists" / "m.jsonl", json.dumps({"audio": "a.wav", "text": "x"}))
    found, problems = listed(reader, path, audio_root=tmp_path / "audio")
    assert [entry["audio"] for entry in found] == [str(tmp_path / "audio" / "a.wav")] and not problems.count


def test_rows_of_json_need_not_have_the_same_fields(tmp_path: Path) -> None:
    record(tmp_path / "a.wav")
    rows = [
        {"text": "no recording"},
        {"path": "a.wav", "text": "one"},
        {"wav": "a.wav", "text": "two", "speaker": "ann"},
        {"path": "a.wav", "text": ["three"]},
    ]
    path = put(tmp_path / "m.json", *map(json.dumps, rows))
    found, problems = listed("table", path)
    assert [(entry["text"], entry.get("speaker")) for entry in found] == [("one", None), ("two", "ann")]
    assert [message.partition(": ")[0] for message in errors(problems)] == [f"{path}:1", f"{path}:4"]
    found, _ = listed("table", path, columns={"who": "speaker"})
    assert [entry.get("who") for entry in found] == ["ann"]
