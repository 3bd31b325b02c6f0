"""Readers, and the manifests that they write."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.__main__ import build_parser, main
from data_prep.commands.manifest import Holdout
from data_prep.readers import ReaderOptions
from data_prep.readers.librispeech import read_librispeech
from data_prep.readers.own import compile_pattern
from tests.corpora import CHAT, DOCUMENT, RATE, assert_sounds_like, encoded, read_entries, record
from ttt_dist.audio import UtteranceReader
from ttt_dist.data.metadata import render
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError


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
    train, valid = read_entries(out), read_entries(held)
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
    assert read_entries(tmp_path / "train.jsonl")[0]["audio"] == "speech/one_ann_0.wav"


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
    assert len(read_entries(out)) == 40
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
        record(chapter / f"84-121123-{number:04d}.flac", 0.1)
    lines = [
        "84-121123-0000 GO DO YOU HEAR",
        "84-121123-0001",
        "84-121123-0002 NO SUCH FILE",
        "",
        "84-121123-0000 AGAIN",
    ]
    (chapter / "84-121123.trans.txt").write_text("\n".join(lines[:3]) + "\n")
    problems = Problems()
    found = list(read_librispeech(ReaderOptions(source=tmp_path / "dev-clean"), problems))
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
    assert read_entries(out) == [
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


def test_holdout_field_must_be_a_number() -> None:
    with pytest.raises(UserError, match="field 'speaker' is 'ann', not an integer"):
        Holdout(10, "speaker").takes({"audio": "a.wav", "speaker": "ann"}, 0)
    assert [position for position in range(12) if Holdout(5, None).takes({}, position)] == [4, 9]


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


def test_chats_and_documents_of_ones_own(tmp_path: Path) -> None:
    for name in ("q", "a", "b", "s"):
        record(tmp_path / "in" / f"{name}.wav")
    record(tmp_path / "in" / "long.wav", seconds=2.0)
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
    found = {entry["id"]: entry for entry in read_entries(out)}
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
    assert [entry["split"] for entry in read_entries(out)] == ["test", "test"]
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
    assert [entry["split"] for entry in read_entries(out)] == ["clean"]
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["errors"]["id came before"]["count"] == 1


def test_flags_of_other_readers_are_refused() -> None:
    for flags in (["--subset", "M"], ["--columns", "text=x"], ["--pattern", "{text}.wav"], ["--columns", "text"]):
        with pytest.raises(SystemExit) as stop:
            main(["manifest", "--reader", "librispeech", "--source", "x", "--out", "y", *flags])
        assert stop.value.code == 2
    with pytest.raises(SystemExit, match="2"):
        main(["manifest", "--reader", "emilia", "--source", "x", "--out", "y", "--split", "train"])


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
