"""Readers, manifests, and utterances joined from single recordings."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_prep.__main__ import build_parser, main
from data_prep.manifest import Entry, Holdout, Problems, parse_entry
from data_prep.readers import ReaderOptions, compile_pattern, read_librispeech
from data_prep.utterances import build_utterances
from ttt_dist.errors import UserError

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
