"""Data files of any layout as items: what benchmarks call their fields, lines that are broken, and paths of recordings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ttt_dist.evaluation.context import locate
from ttt_dist.evaluation.items import Item, read_items
from ttt_dist.evaluation.tasks import item_adapters
from ttt_dist.util.errors import UserError

TRIVIA = {"value": "London", "aliases": ["London, England"], "normalized_aliases": ["london"]}


def read(
    tmp_path: Path, name: str, content: str | bytes, prepare: Callable = item_adapters.question, **more: Any
) -> list:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_items(path, prepare, **more)


@pytest.mark.parametrize(
    ("entry", "question", "answers"),
    [
        ({"question": "Where?", "answers": ["a", "b", "a"]}, "Where?", ["a", "b"]),
        ({"question": "Where?", "answer": TRIVIA}, "Where?", ["London", "London, England", "london"]),
        ({"Question": "Where?", "Answer": {"Value": "x", "Aliases": ["y"], "Type": "z"}}, "Where?", ["x", "y"]),
        ({"utterance": "Who?", "targetValue": '(list (description "A B") (description Zoe))'}, "Who?", ["A B", "Zoe"]),
        ({"Questions": "How many?", "Answer": 7}, "How many?", ["7"]),
        ({"question": "Who?", "answers": "Ann;Bob "}, "Who?", ["Ann", "Bob"]),
        ({"question": "Who?", "answers": "['Ann', 'Bob']"}, "Who?", ["Ann", "Bob"]),
        ({"question": "Who?", "answer": '["Ann; B", "C"]'}, "Who?", ["Ann; B", "C"]),
        ({"question": "Q", "answer_normalized_value": "a", "answer_normalized_aliases": "b,c"}, "Q", ["a", "b", "c"]),
        ({"instruction": "Tell.", "output": "another model's"}, "Tell.", []),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_questions_and_answers_of_benchmarks(tmp_path: Path, entry: dict, question: str, answers: list[str]) -> None:
    (item,) = read(tmp_path, "data.jsonl", json.dumps(entry))
    assert item.entry["turns"] == [{"role": "user", "text": question}]
    assert item.entry["answers"] == answers


def test_a_spoken_question_is_asked_as_speech(tmp_path: Path) -> None:
    (item,) = read(tmp_path, "q.csv", "question,audio_filename,offset\nWhere?,7.wav,\n")
    assert item.entry["turns"] == [{"role": "user", "audio": "7.wav"}]
    assert item_adapters.question_text(item.entry) == "Where?"
    entry = {"audio": "long.wav", "offset": 1.5, "duration": 2, "text": "Where?"}
    (item,) = read(tmp_path, "data.jsonl", json.dumps(entry))
    assert item.entry["turns"] == [{"role": "user", "audio": "long.wav", "offset": 1.5, "duration": 2}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", '{"id": 1, "text": "a"}\n\n{"text": "b"}\n'),
        ("d.json", '[{"id": 1, "text": "a"},\n{"text": "b"}]'),
        ("d.json", '{"Version": 1, "Data": [\n{"id": 1, "text": "a"}, {"text": "b"}]}'),
        ("d.csv", "\ufeffid,text\n1,a\n,b\n"),
        ("d.tsv", "id\ttext\n1\ta\n\tb\n"),
    ],
)
def test_files_of_all_kinds(tmp_path: Path, name: str, content: str) -> None:
    items = read(tmp_path, name, content, item_adapters.spoken_text)
    assert [(item.id, item.entry["text"], item.number) for item in items] == [("1", "a", 1), ("2", "b", 2)]
    assert all(item.where.startswith(f"{tmp_path / name}:") for item in items)
    assert read(tmp_path, name, content, item_adapters.spoken_text, limit=1) == items[:1]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.jsonl", b'{"text": "a"}\n\xff\n{"text": "b"}\n', ":2: is not UTF-8"),
        ("d.jsonl", b'{"text": "a"}\n{"text": \n{"text": "b"}\n', ":2: is not JSON"),
        ("d.jsonl", b'{"text": "a"}\n{"text": 7}\n{"text": "b"}\n', ":2: lacks 'text'"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "c", "id": "1"}\n{"text": "b"}\n', ":2: id '1' came before"),
        ("d.json", b'[{"text": "a"},\n[],\n{"text": "b"}]', ":2: is list, not an object"),
        ("d.json", b'[{"text": "a"},\n{"text": "\xff"},\n{"text": "b"}]', ":2: is not UTF-8"),
        ("d.csv", b"text,more\na,1\nb\nb,2\n", ":3: has 1 columns"),
    ],
)
def test_broken_lines_stay_in_their_place(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    first, broken, last = read(tmp_path, name, content, item_adapters.spoken_text)
    assert (first.entry["text"], last.entry["text"], last.number) == ("a", "b", 3)
    assert broken.startswith(f"{tmp_path / name}{told}")


def test_a_list_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    first, broken = read(tmp_path, "d.json", '[{"text": "a"},\n{"te', item_adapters.spoken_text)
    assert isinstance(first, Item) and "d.json:2: the list" in broken and "breaks off" in broken
    with pytest.raises(UserError, match="is no list of objects"):
        read(tmp_path, "d.json", "7", item_adapters.spoken_text)


@pytest.mark.parametrize(
    ("prepare", "entry", "told"),
    [
        (item_adapters.transcript, {"text": "a"}, "lacks 'audio'"),
        (item_adapters.captions, {"audio": "a.wav"}, "lacks 'captions'"),
        (item_adapters.labelled, {"audio": "a.wav"}, "lacks 'label'"),
        (item_adapters.chat, {"turns": [{"role": "assistant", "text": "a"}]}, "has no turn of the user"),
        (item_adapters.chat, {"turns": [{"role": "robot"}, {"role": "user", "text": "a"}]}, "field 'turns[0].role'"),
        (item_adapters.chat, {"dialogue": []}, "has no turn of the user"),
        (item_adapters.chat, {}, "lacks 'text'"),
        (item_adapters.question, {"audio": 7}, "field 'turns[0]"),
    ],
)
def test_what_a_task_lacks_is_named(tmp_path: Path, prepare: Callable, entry: dict, told: str) -> None:
    (message,) = read(tmp_path, "d.jsonl", json.dumps(entry), prepare)
    assert told in message and message.startswith(f"{tmp_path / 'd.jsonl'}:1: ")


def test_bare_names_may_start_from_the_audio_root(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    clips = {name: locate({"audio": name, "offset": 1}, tmp_path, audio) for name in ("a.wav", "b.wav", "c.wav")}
    assert clips["a.wav"] == {"audio": str(audio / "a.wav"), "offset": 1}
    assert [clips[name]["audio"] for name in ("b.wav", "c.wav")] == ["b.wav", "c.wav"]
    assert locate({"audio": ["a.wav"]}, tmp_path, None) == {"audio": ["a.wav"]}
