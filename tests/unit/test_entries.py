"""Lines of manifests: fields, paths, ids."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpora import CHAT, DOCUMENT
from ttt_dist.manifest import reading
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import Entry, parse_entry, parse_line, with_paths
from ttt_dist.manifest.reading import SeenIds
from ttt_dist.util.errors import UserError


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"audio": 3}, "'audio' is neither"),
        ({"audio": ["a.wav", 3]}, "'audio' is neither"),
        ({"text": 3}, "'text' is missing"),
        ({"offset": -1}, "'offset' is -1"),
        ({"duration": "1"}, "'duration' is '1'"),
        ({"duration": True}, "'duration' is True"),
        ({"gaps": [0.1]}, "'gaps' does not have one number"),
        ({"audio": ["a.wav", "b.wav"], "gaps": [0.1]}, "'gaps' does not have one number"),
        ({"audio": ["a.wav"], "gaps": [-0.1]}, "'gaps' holds something other"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], reason: str) -> None:
    line = json.dumps({"audio": "a.wav", "text": "x", **fields})
    with pytest.raises(UserError, match=rf"m\.jsonl:7: field {reason}"):
        parse_entry(line, "m.jsonl:7")


@pytest.mark.parametrize(
    "entry",
    [
        {"turns": CHAT},
        {"turns": [{"role": "system", "text": "be brief"}, {"role": "user", "text": "hi"}]},
        {"audio": "long.wav", "segments": DOCUMENT},
        {"audio": "a.wav", "label": "rain"},
        {"audio": "a.tar", "member": {"offset": 512, "size": 80}, "text": "x"},
        {"audio": "a.parquet", "member": {"row": 0, "column": "audio"}, "text": "x"},
        {"audio": "a.wav", "text": "x", "speech": {"audio": "b.wav", "offset": 0.5}},
        {"audio": ["a.wav", "b.wav"], "gaps": [0, 0.1], "tail": 0.2, "text": "x", "anything": [None]},
    ],
)
def test_good_entries_pass_as_they_are(entry: Entry) -> None:
    assert parse_line(("\ufeff " + json.dumps(entry) + " \n").encode(), "m:1") == entry


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"audio": None, "segments": DOCUMENT}, "'segments[0].audio' is missing, and the entry has no recording"),
        ({"audio": ["a.wav"], "segments": DOCUMENT}, "'segments[0].audio' is missing, and the entry has no recording"),
        ({"segments": [{"text": "x"}]}, "'segments[0].offset' is missing"),
        ({"segments": [{"audio": "b.wav"}]}, "'segments[0].text' is missing"),
        ({"segments": [{"text": "x", "offset": -1}]}, "'segments[0].offset' is -1"),
        ({"segments": []}, "'segments' is no list of objects, or empty"),
        ({"segments": ["x"]}, "'segments' is no list of objects, or empty"),
        ({"turns": {"role": "user"}}, "'turns' is no list of objects, or empty"),
        (
            {"turns": [{"role": "human", "text": "x"}]},
            "'turns[0].role' is 'human'; give one of system, user, assistant",
        ),
        ({"turns": [{"role": "user"}]}, "'turns[0]' has neither text nor audio"),
        ({"turns": [*CHAT, {"role": "user", "text": " "}]}, "'turns[2].text' is empty or no string"),
        ({"turns": [{"role": "user", "audio": 3}]}, "'turns[0].audio' is neither a path"),
        ({"text": None, "label": " "}, "'label' is empty or no string"),
        ({"text": None, "label": 3}, "'label' is empty or no string"),
        ({"text": None}, "'text' is missing"),
        ({"member": {"offset": 1}}, "'member' is {'offset': 1}; give offset and size in bytes, or row and column"),
        ({"member": {"offset": 1, "size": -1}}, "'member' holds something other than whole numbers"),
        ({"member": {"row": 1.5, "column": "audio"}}, "'member' holds something other than whole numbers"),
        ({"member": {"row": True, "column": "audio"}}, "'member' holds something other than whole numbers"),
        ({"member": {"row": 1, "column": 2}}, "'member.column' is no string"),
        ({"audio": ["a"], "member": {"row": 1, "column": "x"}}, "'member' stands without the path of one container"),
        ({"offset": float("nan")}, "'offset' is nan"),
        ({"duration": float("inf")}, "'duration' is inf"),
        ({"tail": -1}, "'tail' is -1"),
        ({"audio": "a\0b"}, "'audio' holds a zero byte"),
        ({"speech": "b.wav"}, "'speech' is no object with an 'audio'"),
        ({"speech": {"audio": "b.wav", "offset": "1"}}, "'speech.offset' is '1'"),
    ],
)
def test_turns_segments_and_members_are_checked(fields: dict[str, Any], reason: str) -> None:
    line = json.dumps({"audio": "a.wav", "text": "x", **fields}).encode()
    with pytest.raises(UserError) as error:
        parse_line(line, "m.jsonl:7")
    assert str(error.value).startswith(f"m.jsonl:7: field {reason}")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff", "is not UTF-8 (invalid start byte)"),
        (b"[" * 10**5, "is not JSON"),
        (b'{"audio": "a.wav", "text": "\\ud800"}', "an escape \\uD800 to \\uDFFF stands alone"),
    ],
)
def test_lines_that_are_no_entries(line: bytes, reason: str) -> None:
    with pytest.raises(UserError) as error:
        parse_line(line, "m.jsonl:7")
    assert str(error.value).startswith(f"m.jsonl:7: {reason}")


def test_every_path_of_an_entry_is_moved() -> None:
    entry = {"audio": ["a", "b"], "turns": CHAT, "segments": DOCUMENT, "speech": {"audio": "s"}, "text": "x"}
    moved = with_paths(entry, lambda name: f"new/{name}")
    assert [clip.get("audio") for clip in clips({**moved, "segments": None})] == [
        ["new/a", "new/b"],
        "new/q.wav",
        "new/a.wav",
        "new/s",
    ]
    assert [segment.get("audio") for segment in moved["segments"]] == [None, "new/b.wav"]
    assert with_paths(moved, lambda name: name.removeprefix("new/")) == entry
    assert with_paths({"turns": [{"role": "user", "text": "x"}]}, str.upper) == {
        "turns": [{"role": "user", "text": "x"}]
    }


@given(st.lists(st.text(max_size=2), max_size=60), st.integers(1, 8))
def test_ids_that_came_before_are_known(names: list[str], recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RECENT_IDS", recent)
        seen = SeenIds()
        before: set[str] = set()
        for name in names:
            assert seen.add(name) == (name not in before)
            before.add(name)
        assert len(seen._old) + len(seen._recent) == len(before)
        assert len(seen._recent) < recent
