"""Rows of tables of one's own, and long lists inside JSON: which column is which field, and what damage costs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.readers import ReaderOptions
from data_prep.readers.columns import choose_columns, entry_of, require_column
from tests.corpora import errors
from ttt_dist.manifest import json_stream
from ttt_dist.manifest.delimited import delimiter_of, read_rows
from ttt_dist.manifest.json_stream import stream_array
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

PATH = Path("a.tsv")
OPTIONS = ReaderOptions(source=PATH)
LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), LEAF | st.lists(LEAF, max_size=2), max_size=3), max_size=5)


def test_a_column_that_is_named_goes_before_the_known_ones() -> None:
    available = ["sentence", "path", "wav", "speaker", "mood"]
    assert choose_columns(available, {}, PATH) == {"audio": "path", "text": "sentence", "speaker": "speaker"}
    chosen = choose_columns(available, {"audio": "wav", "mood": "mood"}, PATH)
    assert chosen["audio"] == "wav" and chosen["mood"] == "mood"
    with pytest.raises(UserError, match=r"--columns text=words: a.tsv has no such column, but sentence, path"):
        choose_columns(available, {"text": "words"}, PATH)
    assert require_column(chosen, "audio", PATH) == "wav"
    with pytest.raises(UserError, match=r"no column is known to hold 'id'; name it by --columns id=COLUMN"):
        require_column(chosen, "id", PATH)


def test_a_row_becomes_an_entry() -> None:
    problems = Problems(told=0)
    row = {"path": "a.wav", "sentence": " one two ", "offset": "1.5", "duration": 2, "locale": "", "speaker_id": 7}
    columns = choose_columns(row, {}, PATH)
    entry = {"text": "one two", "offset": 1.5, "duration": 2.0, "speaker": "7"}
    assert entry_of(row, columns, "a.tsv:2", OPTIONS, problems) == entry
    spoken = ReaderOptions(source=PATH, lang="en")
    assert entry_of(row, columns, "a.tsv:2", spoken, problems) == entry | {"lang": "en"}
    assert not problems.count


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "1,5"])
def test_seconds_that_are_none_are_reported(value: str) -> None:
    problems = Problems(told=0)
    row = {"text": "one", "offset": value}
    assert entry_of(row, choose_columns(row, {}, PATH), "a.tsv:2", OPTIONS, problems) is None
    assert errors(problems) == [f"a.tsv:2: column 'offset' is {value!r}, not seconds; correct the line"]


def test_a_row_says_something() -> None:
    problems = Problems(told=0)
    row = {"text": "", "label": "", "path": "a.wav"}
    assert entry_of(row, choose_columns(row, {}, PATH), "a.tsv:2", OPTIONS, problems) is None
    assert "no text" in problems.errors
    row |= {"label": "rain"}
    assert entry_of(row, choose_columns(row, {}, PATH), "a.tsv:2", OPTIONS, problems) == {"label": "rain"}


def test_rows_know_their_lines_and_bad_ones_cost_no_others(tmp_path: Path) -> None:
    path, problems = tmp_path / "a.csv", Problems(told=0)
    path.write_bytes(b'\xef\xbb\xbfid, text\n1,"two\nlines"\n\n2,a,b\n\xff,x\n3,""\n')
    rows = list(read_rows(path, problems, delimiter_of(path)))
    assert rows == [(f"{path}:3", {"id": "1", "text": "two\nlines"}), (f"{path}:7", {"id": "3", "text": ""})]
    assert [message.partition(":")[2][:1] for message in errors(problems)] == ["5", "6"]
    assert "has 3 columns, the header 2" in errors(problems)[0]
    assert delimiter_of(Path("a.TSV")) == "\t"
    tab = tmp_path / "a.tsv"
    tab.write_text('id\ttext\n1\t"so" he said\n2\t\n')
    assert [row["text"] for _, row in read_rows(tab, problems, "\t")] == ['"so" he said', ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream")


@settings(max_examples=40)
@given(items=OBJECTS, chunk=st.integers(1, 40), indent=st.none() | st.just(1))
def test_a_stream_gives_what_the_file_holds(folder: Path, items: list[Any], chunk: int, indent: int | None) -> None:
    """Whatever the size of what is read at once: an object, a number, an escape may lie across its border."""
    path, problems = folder / "a.json", Problems(told=0)
    content = json.dumps({"about": [1], "audios": items}, indent=indent)
    path.write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        told = list(stream_array(path, "audios", problems))
    assert [item for _, item in told] == items
    if indent:
        starts = [int(place.rpartition(":")[2]) for place, _ in told]
        assert all(content.splitlines()[line - 1].lstrip().startswith("{") for line in starts)
    assert not problems.count


def test_a_list_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    path, problems = tmp_path / "a.json", Problems(told=0)
    path.write_text('[{"a": 1},\n{"a": 2},\n{"a": ')
    assert [item for _, item in stream_array(path, None, problems)] == [{"a": 1}, {"a": 2}]
    assert errors(problems)[0].startswith(f"{path}:3: the list 'of the file' breaks off")
    with pytest.raises(UserError, match="has no list 'audios'"):
        list(stream_array(path, "audios", problems))
