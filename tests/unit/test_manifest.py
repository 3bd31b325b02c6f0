"""Readers, manifests, and utterances joined from single recordings."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_prep import manifest
from data_prep.__main__ import build_parser, main
from data_prep.entry import with_paths
from data_prep.group import group_entries
from data_prep.manifest import Entry, Holdout, Problems, SeenIds, parse_entry, parse_line
from data_prep.readers import ReaderOptions
from data_prep.readers.librispeech import read_librispeech
from data_prep.readers.own import compile_pattern
from data_prep.utterances import build_utterances
from tests.corpora import assert_sounds_like, encoded
from tests.corpora import record as record_sound
from ttt_dist.audio import UtteranceReader
from ttt_dist.data.metadata import render
from ttt_dist.errors import UserError
from ttt_dist.files import sha256_file
from ttt_dist.sequence.clips import clips

RATE = 8000


def record(path: Path, seconds: float = 0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(round(seconds * RATE), np.float32), RATE)


def entries(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    for word in ("one", "two"):
        for speaker in ("ann", "bob"):
            for index in range(10):
                record(tmp_path / "speech" / f"{word}_{speaker}_{index}.wav", 0.1 + index / 100)
    (tmp_path / "speech" / "README.md").write_text("not audio")
    return tmp_path / "speech"


PATTERN = ["--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav"]


def test_pattern_reader_with_holdout(digits: Path, tmp_path: Path) -> None:
    out, held = tmp_path / "work" / "train.jsonl", tmp_path / "work" / "valid.jsonl"
    holdout = ["--holdout-every", "10", "--holdout-field", "index", "--holdout-out", str(held)]
    main(["manifest", *PATTERN, "--source", str(digits), "--out", str(out), "--lang", "en", *holdout])
    train, valid = entries(out), entries(held)
    assert len(train) == 36
    assert len(valid) == 4
    assert {entry["index"] for entry in valid} == {"9"}
    assert "9" not in {entry["index"] for entry in train}
    assert train[0] == {
        "id": "one_ann_0",
        "audio": str(digits / "one_ann_0.wav"),
        "text": "one",
        "speaker": "ann",
        "index": "0",
        "lang": "en",
        "duration": 0.1,
    }


def test_paths_below_the_manifest_are_relative(digits: Path, tmp_path: Path) -> None:
    main(["manifest", *PATTERN, "--source", str(digits), "--out", str(tmp_path / "train.jsonl")])
    assert entries(tmp_path / "train.jsonl")[0]["audio"] == "speech/one_ann_0.wav"


def test_bad_files_are_named_and_the_good_work_kept(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (digits / "three_ann_0.wav").write_bytes(b"")
    (digits / "four_ann_0.wav").write_text("no audio")
    (digits / "nameless.wav").write_bytes((digits / "one_ann_0.wav").read_bytes())
    out = tmp_path / "train.jsonl"
    command = ["manifest", *PATTERN, "--source", str(digits), "--out", str(out)]
    with pytest.raises(UserError, match=r"3 bad files or lines.*40 good ones were written"):
        main(command)
    assert len(entries(out)) == 40
    told = capsys.readouterr().err
    for name in ("three_ann_0.wav", "four_ann_0.wav", "nameless.wav"):
        assert f"warning: {digits / name}: " in told
    main([*command, "--max-errors", "3"])


@pytest.mark.parametrize(
    ("pattern", "name", "fields"),
    [
        ("{text}_{speaker}_{index}.wav", "7_jackson_32.wav", {"text": "7", "speaker": "jackson", "index": "32"}),
        ("{speaker}/{text}-{take}.flac", "ann/ten-2.flac", {"speaker": "ann", "text": "ten", "take": "2"}),
        ("{text}.wav", "a b.c.wav", {"text": "a b.c"}),
        ("{text}_{speaker}.wav", "7_jackson.mp3", None),
        ("{text}_{speaker}.wav", "x/7_jackson.wav", None),
        ("{text}_{speaker}.wav", "7.wav", None),
    ],
)
def test_patterns(pattern: str, name: str, fields: dict[str, str] | None) -> None:
    match = compile_pattern(pattern).fullmatch(name)
    assert (match and match.groupdict()) == fields


@pytest.mark.parametrize("pattern", ["{speaker}.wav", "{text}_{text}.wav", "{text}", "{text}_{id}.wav", "{text}.{x}"])
def test_patterns_that_cannot_work_are_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="--pattern"):
        compile_pattern(pattern)


def test_librispeech_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chapter = tmp_path / "dev-clean" / "84" / "121123"
    for number in (0, 1, 3):
        record(chapter / f"84-121123-{number:04d}.flac")
    lines = [
        "84-121123-0000 GO DO YOU HEAR",
        "84-121123-0001",
        "84-121123-0002 NO SUCH FILE",
        "",
        "84-121123-0000 AGAIN",
    ]
    (chapter / "84-121123.trans.txt").write_text("\n".join(lines[:3]) + "\n")
    problems = Problems()
    found = list(read_librispeech(ReaderOptions(tmp_path / "dev-clean"), problems))
    assert found == [
        {
            "id": "84-121123-0000",
            "audio": str(chapter / "84-121123-0000.flac"),
            "text": "GO DO YOU HEAR",
            "lang": "en",
            "speaker": "84",
            "chapter": "121123",
            "split": "dev-clean",
            "duration": 0.1,
        }
    ]
    told = capsys.readouterr().err
    assert problems.count == 3
    assert "84-121123.trans.txt:2: utterance 84-121123-0001 has no text" in told
    assert "84-121123.trans.txt:3: " in told
    assert "0002.flac: no such file" in told
    assert "84-121123-0003.flac: has no line in 84-121123.trans.txt" in told


def test_jsonl_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "corpus" / "mine.jsonl"
    record(tmp_path / "corpus" / "clips" / "a.wav", 1.0)
    good = {"audio": "clips/a.wav", "text": " hello ", "topic": "greeting"}
    lines = [
        json.dumps(good),
        "{not json",
        json.dumps({"text": "no audio"}),
        json.dumps({"audio": "clips/a.wav"}),
        json.dumps({"audio": "clips/a.wav", "text": "  "}),
        json.dumps({"audio": "clips/missing.wav", "text": "x"}),
        json.dumps({"audio": "clips/a.wav", "text": "piece", "offset": 0.5, "duration": 0.2, "id": "p"}),
        json.dumps({"audio": "clips/a.wav", "text": "piece", "offset": 0.5, "duration": 0.8}),
        json.dumps({"audio": "clips/a.wav", "text": "twice", "id": "p"}),
        "[1, 2]",
    ]
    source.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    out = tmp_path / "corpus" / "train.jsonl"
    with pytest.raises(UserError, match="9 bad files or lines"):
        main(["manifest", "--reader", "jsonl", "--source", str(source), "--out", str(out)])
    assert entries(out) == [
        {"id": "mine-1", "audio": "clips/a.wav", "text": "hello", "topic": "greeting", "duration": 1.0},
        {"id": "p", "audio": "clips/a.wav", "text": "piece", "offset": 0.5, "duration": 0.2},
    ]
    told = capsys.readouterr().err
    for number, reason in [
        (2, "is not JSON"),
        (3, "field 'audio' is missing"),
        (4, "field 'text' is missing"),
        (5, "field 'text' is empty"),
        (6, "no such file"),
        (8, "does not lie within"),
        (9, "id 'p' came before"),
        (10, "is list, not an object"),
        (11, "is not UTF-8"),
    ]:
        assert any(f"mine.jsonl:{number}: " in line and reason in line for line in told.splitlines()), number


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


def test_holdout_field_must_be_a_number() -> None:
    with pytest.raises(UserError, match="field 'speaker' is 'ann', not an integer"):
        Holdout(10, "speaker").takes({"audio": "a.wav", "speaker": "ann"}, 0)
    assert [position for position in range(12) if Holdout(5, None).takes({}, position)] == [4, 9]


def recordings() -> list[Entry]:
    return [
        {"audio": f"{word}_{who}_{take}", "text": word, "speaker": who, "duration": 0.5}
        for word in ("one", "two", "three")
        for who in ("ann", "bob")
        for take in range(4)
    ]


def test_utterances_follow_from_the_seed_and_are_balanced() -> None:
    def build(seed: int) -> list[Entry]:
        return list(build_utterances(recordings(), 240, (1, 4), (0.0, 0.2), (0.1, 0.3), seed, "train"))

    built = build(0)
    assert built == build(0)
    assert built != build(1)
    assert [entry["id"] for entry in built[:2]] == ["train-000000", "train-000001"]
    for entry in built:
        parts = [part.split("_") for part in entry["audio"]]
        assert {who for _, who, _ in parts} == {entry["speaker"]}
        assert entry["text"].split() == [word for word, _, _ in parts]
        assert len(entry["gaps"]) == len(parts)
        assert all(0 <= gap <= 0.2 for gap in entry["gaps"])
        assert 0.1 <= entry["tail"] <= 0.3
        assert entry["duration"] == pytest.approx(0.5 * len(parts) + sum(entry["gaps"]) + entry["tail"])
    used = Counter(part for entry in built for part in entry["audio"])
    assert len(used) == 24
    for who in ("ann", "bob"):
        for word in ("one", "two", "three"):  # words are drawn freely, the recordings of a word in turn
            counts = [used[f"{word}_{who}_{take}"] for take in range(4)]
            assert max(counts) - min(counts) <= 1
            assert 60 <= sum(counts) <= 140
    texts = [entry["text"].split() for entry in built]
    assert any(a == b for words in texts for a, b in pairwise(words))  # strings repeat words
    assert Counter(len(entry["audio"]) for entry in built) == dict.fromkeys(range(1, 5), 60)
    assert Counter(entry["speaker"] for entry in built) == {"ann": 120, "bob": 120}


def test_a_longer_list_begins_with_the_shorter() -> None:
    short = list(build_utterances(recordings(), 10, (1, 4), (0.0, 0.2), (0.1, 0.3), 0, "t"))
    assert list(build_utterances(recordings(), 30, (1, 4), (0.0, 0.2), (0.1, 0.3), 0, "t"))[:10] == short


def test_utterances_command_moves_paths(digits: Path, tmp_path: Path) -> None:
    singles, out = tmp_path / "singles.jsonl", tmp_path / "speech" / "strings.jsonl"
    main(["manifest", *PATTERN, "--source", str(digits), "--out", str(singles)])
    main(["utterances", "--manifest", str(singles), "--out", str(out), "--count", "7", "--gap", "0.1"])
    built = entries(out)
    assert len(built) == 7
    assert all((out.parent / part).is_file() for entry in built for part in entry["audio"])
    assert {gap for entry in built for gap in entry["gaps"]} == {0.1}
    with pytest.raises(SystemExit, match="2"):
        main(["utterances", "--manifest", str(singles), "--out", str(out), "--count", "7", "--min-words", "6"])


def test_bad_usage_has_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = ["manifest", "--source", "x", "--out", "y", "--reader"]
    for arguments in (
        [],
        ["no-such-command"],
        ["manifest"],
        ["utterances", "--gap", "2:1"],
        ["utterances", "--manifest", "x", "--out", "y", "--count", "0"],
        [*manifest, "pattern"],
        [*manifest, "jsonl", "--holdout-every", "10"],
        [*manifest, "jsonl", "--holdout-every", "1", "--holdout-out", "z"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "encode" in capsys.readouterr().out
    assert "Megatron" not in build_parser(None).format_help()


def test_no_utterance_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no utterance"):
        main(["manifest", "--reader", "librispeech", "--source", str(tmp_path), "--out", str(tmp_path / "t.jsonl")])
    with pytest.raises(UserError, match="is no folder"):
        main(
            ["manifest", "--reader", "librispeech", "--source", str(tmp_path / "x"), "--out", str(tmp_path / "t.jsonl")]
        )


CHAT = [{"role": "user", "audio": "q.wav"}, {"role": "assistant", "text": "yes", "audio": "a.wav", "offset": 1.0}]
DOCUMENT = [{"text": "one", "offset": 0.0, "duration": 0.5}, {"text": "two", "audio": "b.wav"}]


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
        patch.setattr(manifest, "RECENT_IDS", recent)
        seen = SeenIds()
        before: set[str] = set()
        for name in names:
            assert seen.add(name) == (name not in before)
            before.add(name)
        assert len(seen._old) + len(seen._recent) == len(before)
        assert len(seen._recent) < recent


def test_chats_and_documents_of_ones_own(tmp_path: Path) -> None:
    for name in ("q", "a", "b", "s"):
        record_sound(tmp_path / "in" / f"{name}.wav")
    record_sound(tmp_path / "in" / "long.wav", seconds=2.0)
    (tmp_path / "in" / "box.tar").write_bytes(bytes(100) + encoded("boxed"))
    member = {"offset": 100, "size": len(encoded("boxed"))}
    lines = [
        {"id": "chat", "turns": [CHAT[0], {**CHAT[1], "offset": 0.1}]},
        {"id": "document", "audio": "long.wav", "segments": DOCUMENT},
        {"id": "spoken", "audio": "a.wav", "text": " a sound ", "speech": {"audio": "s.wav"}},
        {"id": "boxed", "audio": "box.tar", "member": member, "text": "x"},
        {"id": "words", "turns": [{"role": "user", "text": "hi"}]},
        {"id": "late", "turns": [{"role": "user", "audio": "a.wav", "offset": 9}]},
        {"id": "gone", "segments": [{"text": "x", "audio": "gone.wav"}]},
    ]
    (tmp_path / "in" / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out" / "train.jsonl"
    command = ["manifest", "--reader", "jsonl", "--source", str(tmp_path / "in/m.jsonl"), "--out", str(out)]
    main([*command, "--max-errors", "2"])
    found = {entry["id"]: entry for entry in entries(out)}
    assert {name: entry.get("duration") for name, entry in found.items()} == {
        "chat": 0.5,
        "document": 0.8,
        "spoken": 0.3,
        "boxed": 0.3,
        "words": None,
    }
    assert found["spoken"]["text"] == "a sound"
    names = [("chat", "q"), ("chat", "a"), ("document", "long"), ("document", "b"), ("spoken", "a"), ("spoken", "s")]
    heard = [clip for name in ("chat", "document", "spoken", "boxed") for clip in clips(found[name])]
    for clip, (_, name) in zip(heard, [*names, ("boxed", "boxed")], strict=True):
        seconds = len(UtteranceReader(out.parent, RATE, audio_root=tmp_path).read(clip)) / RATE
        assert_sounds_like(
            {**clip, "audio": clip["audio"].replace(str(tmp_path / "in"), ".")}, name, tmp_path / "in", seconds
        )
    report = json.loads((tmp_path / "out" / "train.jsonl.report.json").read_text())
    assert report["errors"]["bad audio"]["count"] == 2


def test_the_report_says_what_there_is_and_what_was_left_out(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            record(tmp_path / "in" / split / f"one_{number}.wav", 0.36)
    (tmp_path / "in" / "train" / "bad_9.wav").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("x")
    out, held = tmp_path / "out" / "train.jsonl", tmp_path / "out" / "held.jsonl"
    command = ["manifest", "--reader", "pattern", "--pattern", "{split}/{text}_{index}.wav", "--lang", "en"]
    command += ["--source", str(tmp_path / "in"), "--out", str(out), "--max-errors", "1"]
    main([*command, "--holdout-every", "3", "--holdout-out", str(held), "--holdout-field", "index"])
    path = tmp_path / "out" / "train.jsonl.report.json"
    report = json.loads(path.read_text())
    assert path.read_text() == render(report)
    report.pop("checksum")
    assert report == {
        "format": "ttt_dist manifest report 1",
        "made_by": "pattern",
        "source": str(tmp_path / "in"),
        "manifests": {
            "train.jsonl": {
                "sha256": sha256_file(out),
                "lines": 5,
                "hours": 0.0005,
                "splits": {"test": {"lines": 2, "hours": 0.0002}, "train": {"lines": 3, "hours": 0.0003}},
                "langs": {"en": {"lines": 5, "hours": 0.0005}},
            },
            "held.jsonl": {
                "sha256": sha256_file(held),
                "lines": 1,
                "hours": 0.0001,
                "splits": {"train": {"lines": 1, "hours": 0.0001}},
                "langs": {"en": {"lines": 1, "hours": 0.0001}},
            },
        },
        "skipped": {"not .wav": {"count": 1, "places": [f"{tmp_path}/in/notes.txt"]}},
        "errors": {
            "bad audio": {
                "count": 1,
                "places": [f"{tmp_path}/in/train/bad_9.wav: is an empty file; remove it or record it again"],
            }
        },
    }
    first = (out.read_bytes(), path.read_bytes())
    main([*command, "--holdout-every", "3", "--holdout-out", str(held), "--holdout-field", "index"])
    assert (out.read_bytes(), path.read_bytes()) == first
    main([*command, "--split", "test"])
    assert [entry["split"] for entry in entries(out)] == ["test", "test"]
    assert json.loads(path.read_text())["skipped"]["not in split test"]["count"] == 5


def test_places_are_counted_beyond_the_first_twenty(capsys: pytest.CaptureFixture[str]) -> None:
    problems = Problems(told=2)
    for number in range(30):
        problems.report(f"f:{number}: bad", "bad")
        problems.skip("dull", f"f:{number}\udcff")
    summary = problems.summary()
    assert summary["errors"] == {"bad": {"count": 30, "places": [f"f:{number}: bad" for number in range(20)]}}
    assert summary["skipped"]["dull"]["places"][0] == "f:0\\udcff"
    assert problems.count == 30
    assert capsys.readouterr().err.count("warning") == 3


def test_ids_are_unique_over_a_corpus(tmp_path: Path) -> None:
    for split in ("clean", "other"):
        chapter = tmp_path / "in" / split / "1" / "2"
        record(chapter / "1-2-0.flac")
        (chapter / "1-2.trans.txt").write_text("1-2-0 HELLO\n")
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="1 bad files or lines"):
        main(["manifest", "--reader", "librispeech", "--source", str(tmp_path / "in"), "--out", str(out)])
    assert [entry["split"] for entry in entries(out)] == ["clean"]
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["errors"]["id came before"]["count"] == 1


def test_flags_of_other_readers_are_refused() -> None:
    for flags in (["--subset", "M"], ["--columns", "text=x"], ["--pattern", "{text}.wav"], ["--columns", "text"]):
        with pytest.raises(SystemExit) as stop:
            main(["manifest", "--reader", "librispeech", "--source", "x", "--out", "y", *flags])
        assert stop.value.code == 2
    with pytest.raises(SystemExit, match="2"):
        main(["manifest", "--reader", "emilia", "--source", "x", "--out", "y", "--split", "train"])


@given(
    st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 50)), min_size=1, max_size=40),
    st.integers(1, 60),
)
def test_groups_keep_all_utterances_in_order(chapters: list[tuple[str, int]], most: int) -> None:
    members = [
        {"id": str(n), "audio": f"{n}.wav", "text": f"t{n}", "duration": s, "chapter": c, "lang": "en", "index": n}
        for n, (c, s) in enumerate(chapters)
    ]
    groups = list(group_entries(members, "chapter", most))
    flat = [(group["chapter"], segment) for group in groups for segment in group["segments"]]
    kept = ("text", "audio", "duration")
    assert flat == [(entry["chapter"], {name: entry[name] for name in kept}) for entry in members]
    assert len({group["id"] for group in groups}) == len(groups)
    for group in groups:
        assert group["duration"] == sum(segment["duration"] for segment in group["segments"])
        assert group["duration"] <= most or len(group["segments"]) == 1
        assert group["lang"] == "en"
        assert ("index" in group) == (len(group["segments"]) == 1)
    for one, two in pairwise(groups):  # as long as may be
        assert one["chapter"] != two["chapter"] or one["duration"] + two["segments"][0]["duration"] > most


def test_group_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_sound(tmp_path / "in" / "a.wav", seconds=1.0)
    box = {"audio": "t.tar", "duration": 0.3, "text": "x"}
    lines = [
        *({"id": f"a{n}", "audio": "a.wav", "text": f"t{n}", "offset": n / 4, "duration": 0.25} for n in range(3)),
        {**box, "id": "m0", "member": {"offset": 512, "size": 9}},
        {**box, "id": "m1", "member": {"offset": 2048, "size": 9}},
        {"id": "chat", "turns": CHAT},
        {"id": "label", "audio": "a.wav", "label": "rain", "duration": 1},
    ]
    source, out = tmp_path / "in" / "m.jsonl", tmp_path / "out" / "g.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    command = ["group", "--manifest", str(source), "--out", str(out), "--by"]
    with pytest.raises(UserError, match=r"2 bad files or lines.*3 groups were written"):
        main([*command, "audio"])
    found = entries(out)
    assert [entry["id"] for entry in found] == ["a0+2", "m0+0", "m1+0"]
    assert found[0]["segments"][1] == {
        "text": "t1",
        "audio": str(tmp_path / "in" / "a.wav"),
        "offset": 0.25,
        "duration": 0.25,
    }
    assert found[2]["segments"][0]["member"] == {"offset": 2048, "size": 9}
    assert parse_entry(json.dumps(found[0]), "m:1") == found[0]
    reader = UtteranceReader(out.parent, RATE, audio_root=tmp_path)
    assert [len(reader.read(clip)) for clip in clips(found[0])] == [RATE // 4] * 3
    assert "m.jsonl:6: is not one recording" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no entry that can be grouped by 'chapter'"):
        main([*command, "chapter"])
    for flags in (["audio", "--max-seconds", "0"], ["audio", "--out", str(source)]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *flags])


def test_only_whole_files_of_words_are_joined(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "audio": "a.wav", "text": "one", "duration": 1},
        {"id": "b", "audio": "b.tar", "member": {"offset": 0, "size": 9}, "text": "one", "duration": 1},
        {"id": "c", "turns": CHAT},
        {"id": "d", "audio": "d.wav", "label": "rain", "duration": 1},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="3 bad files or lines"):
        main(
            ["utterances", "--manifest", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--count", "2"]
        )
    assert {part for entry in entries(tmp_path / "o.jsonl") for part in entry["audio"]} == {"a.wav"}


def test_verify_finds_any_flipped_byte_of_manifests_and_report(tmp_path: Path) -> None:
    for number in range(6):
        soundfile.write(tmp_path / f"one_ann_{number}.wav", np.zeros(800), 8000)
    out, held = tmp_path / "out" / "train.jsonl", tmp_path / "out" / "held.jsonl"
    listed = ["manifest", "--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav", "--source", str(tmp_path)]
    main([*listed, "--out", str(out), "--holdout-every", "3", "--holdout-out", str(held)])
    main(["utterances", "--manifest", str(out), "--out", str(tmp_path / "out" / "strings.jsonl"), "--count", "5"])
    rng = np.random.default_rng(0)
    manifests = [out, held, tmp_path / "out" / "strings.jsonl"]
    for listed_in in manifests:
        main(["verify", str(listed_in)])
        for path in (listed_in, tmp_path / "out" / ("strings" if "strings" in listed_in.name else "train")):
            path = path if path == listed_in else path.with_name(f"{path.name}.jsonl.report.json")
            content = path.read_bytes()
            for place in rng.integers(0, len(content), 20).tolist():
                path.write_bytes(
                    content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
                )
                with pytest.raises(UserError, match="problem"):
                    main(["verify", str(listed_in)])
            path.write_bytes(content)
        main(["verify", str(listed_in)])
    out.unlink()
    with pytest.raises(UserError, match="1 problem"):
        main(["verify", str(out)])
    with pytest.raises(UserError, match=r"no \*\.report\.json here knows other\.jsonl"):
        main(["verify", str(tmp_path / "out" / "other.jsonl")])
