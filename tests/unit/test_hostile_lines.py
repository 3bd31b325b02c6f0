"""One line of a manifest or table that asks for the impossible is named and counted, and costs no other."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.train_codec_tokenizer import total_seconds
from tests.corpora import RATE, errors, listed, put, read_entries, record
from ttt_dist.manifest.entry import MAX_DEPTH, MAX_SECONDS, bad_path, is_deep, is_seconds, parse_entry, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.errors import MAX_MESSAGE, UserError, one_line

LONG = "x" * 300 + ".wav"
DIGITS = "9" * 401
HOSTILE = {
    "zero byte": '{"audio": "a\\u0000.wav", "text": "x"}',
    "zero byte in a list": '{"audio": ["a.wav", "a\\u0000.wav"], "text": "x"}',
    "zero byte in speech": '{"audio": "a.wav", "text": "x", "speech": {"audio": "\\u0000"}}',
    "long name": json.dumps({"audio": LONG, "text": "x"}),
    "long folder": json.dumps({"audio": f"{LONG}/a.wav", "text": "x"}),
    "long name in letters of three bytes": json.dumps({"audio": "語" * 90, "text": "x"}),
    "long path": json.dumps({"audio": "d/" * 3000 + "a.wav", "text": "x"}),
    "long name in a list": json.dumps({"audio": ["a.wav", LONG], "text": "x"}),
    "long name of a segment": json.dumps({"segments": [{"audio": LONG, "text": "x"}]}),
    "offset 1e308": '{"audio": "a.wav", "text": "x", "offset": 1e308}',
    "offset of many digits": f'{{"audio": "a.wav", "text": "x", "offset": {DIGITS}}}',
    "offset NaN": '{"audio": "a.wav", "text": "x", "offset": NaN}',
    "offset Infinity": '{"audio": "a.wav", "text": "x", "offset": Infinity}',
    "duration 1e308": '{"audio": "a.wav", "text": "x", "offset": 0, "duration": 1e308}',
    "duration alone 1e308": '{"audio": "a.wav", "text": "x", "duration": 1e308}',
    "duration of many digits": f'{{"audio": "a.wav", "text": "x", "duration": {DIGITS}}}',
    "duration of more digits than Python reads": f'{{"audio": "a.wav", "text": "x", "duration": {"9" * 5000}}}',
    "duration -Infinity": '{"audio": "a.wav", "text": "x", "duration": -Infinity}',
    "tail": '{"audio": ["a.wav"], "text": "x", "tail": 1e12}',
    "tail that is allowed as seconds": '{"audio": ["a.wav"], "text": "x", "tail": 1e8}',
    "gaps": '{"audio": ["a.wav", "a.wav"], "text": "x", "gaps": [0, 1e8]}',
    "member of many digits": f'{{"audio": "a.wav", "text": "x", "member": {{"offset": {DIGITS}, "size": {DIGITS}}}}}',
    "row of many digits": f'{{"audio": "a.wav", "text": "x", "member": {{"row": {DIGITS}, "column": "audio"}}}}',
    "folder": '{"audio": ".", "text": "x"}',
    "below a file": '{"audio": "a.wav/b.wav", "text": "x"}',
    "link to itself": '{"audio": "loop", "text": "x"}',
    "deep": '{"audio": "a.wav", "text": "x", "more": ' + "[" * 5000 + "]" * 5000 + "}",
    "deep, as far as Python reads": '{"audio": "a.wav", "text": "x", "more": ' + "[" * 900 + "]" * 900 + "}",
    "list": "[1, 2]",
    "lone surrogate": '{"audio": "a.wav", "text": "\\ud800"}',
    "audio is an object": '{"audio": {"a": 1}, "text": "x"}',
    "turns is text": '{"turns": "x"}',
    "segments of lists": '{"segments": [[]]}',
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with every hostile line among good ones."""
    folder = tmp_path_factory.mktemp("hostile")
    record(folder / "a.wav", seconds=2.0)
    (folder / "loop").symlink_to("loop")
    good = json.dumps({"audio": "a.wav", "text": "good"})
    lines = [line for hostile in HOSTILE.values() for line in (hostile, good)]
    put(folder / "m.jsonl", *lines)
    return folder


def test_encode_goes_on_past_every_hostile_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn = ["--codec", "melvq", "--train-codec", "--sample-rate", str(RATE), "--codebook-size", "8"]
    command = ["encode", "--manifest", str(corpus / "m.jsonl"), *learn, "--out", str(tmp_path / "codes")]
    main([*command, "--max-errors", str(len(HOSTILE))])
    assert len(read_entries(tmp_path / "codes" / "part-00000.jsonl")) == len(HOSTILE)
    part = json.loads((tmp_path / "codes" / "part-00000.json").read_text())
    assert part["counts"]["utterances"] == len(HOSTILE)
    places = {problem.partition(": ")[0] for problem in part["problems"]}
    assert places == {f"{corpus / 'm.jsonl'}:{2 * number + 1}" for number in range(len(HOSTILE))}
    assert all(len(problem) < MAX_MESSAGE + 100 for problem in part["problems"])
    with pytest.raises(UserError, match=f"^{len(HOSTILE)} bad files or lines"):
        main([*command, "--max-errors", str(len(HOSTILE) - 1)])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", HOSTILE)
def test_listing_goes_on_past_a_hostile_line(corpus: Path, name: str) -> None:
    path = put(corpus / "one.jsonl", HOSTILE[name], json.dumps({"audio": "a.wav", "text": "good"}))
    for reader in ("jsonl", "table"):
        found, problems = listed(reader, path)
        assert found[-1]["text"] == "good"
        assert len(found) + problems.count >= 2
        for entry in found:
            json.dumps(entry, allow_nan=False)
    assert all(len(message) <= MAX_MESSAGE + 100 for message in errors(problems))


@pytest.mark.parametrize("value", [LONG, "a\0.wav", "語" * 90, "d/" * 3000])
@pytest.mark.parametrize("more", [{}, {"duration": 1.0}])
def test_a_name_that_no_file_can_have_costs_its_own_row(tmp_path: Path, value: str, more: dict[str, Any]) -> None:
    """With a stated length the file is only looked for, and without one it is opened."""
    record(tmp_path / "a.wav")
    record(tmp_path / "clips" / "a.wav")
    rows = [{"audio": name, "text": "x", **more} for name in ("a.wav", value, "a.wav")]
    lines = ["\t".join(map(str, row.values())) for row in rows]
    tables = {"t.tsv": ["\t".join(rows[0]), *lines], "t.jsonl": [json.dumps(row) for row in rows]}
    for name, content in tables.items():
        found, problems = listed("table", put(tmp_path / name, *content))
        assert [entry["text"] for entry in found] == ["x", "x"] and problems.count == 1
    put(tmp_path / "cv" / "train.tsv", "path\tsentence", "a.wav\tx", f"{value}\tx", "a.wav\tx")
    put(
        tmp_path / "cv" / "clip_durations.tsv",
        "clip\tduration[ms]",
        "a.wav\t300",
        f"{Path(value).name}\t{DIGITS}",
        f"{value}\t300",
    )
    record(tmp_path / "cv" / "clips" / "a.wav")
    found, problems = listed("commonvoice", tmp_path / "cv")
    assert len(found) == 2 and problems.count == 2
    put(tmp_path / "em.jsonl", *(json.dumps({"id": str(i), "wav": row["audio"], **row}) for i, row in enumerate(rows)))
    found, problems = listed("emilia", tmp_path / "em.jsonl")
    assert len(found) == 2 and problems.count == 1


@pytest.mark.parametrize("value", ["1e308", DIGITS, "9" * 5000, "nan", "inf", "-1", "", "True", "0x10"])
def test_seconds_that_no_recording_has(value: str) -> None:
    assert seconds_of(value) is None


@given(st.floats() | st.integers() | st.booleans() | st.text() | st.none())
def test_seconds_are_finite_and_bounded(value: Any) -> None:
    assert not is_seconds(value) or 0 <= float(value) <= MAX_SECONDS
    found = seconds_of(value)
    assert found is None or 0 <= found <= MAX_SECONDS


@given(st.text(max_size=600))
def test_a_path_is_bad_where_the_system_says_so(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name.replace("/", "_")
    try:
        path.lstat()
        refused = False
    except FileNotFoundError:
        refused = False
    except (OSError, ValueError):
        refused = True
    assert refused == (bad_path(str(path)) is not None)


@given(
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
)
def test_shallow_values_are_not_deep(value: Any) -> None:
    assert not is_deep(value)


def test_depth_is_that_of_lists_and_objects() -> None:
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        value: Any = []
        for level in range(depth - 1):
            value = [value] if level % 2 else {"a": value}
        assert is_deep([value]) == (depth >= MAX_DEPTH)
    entry = {"audio": "a.wav", "text": "[" * 500 + "{" * 500}
    assert parse_entry(json.dumps(entry), "m:1") == entry


@pytest.mark.parametrize("value", ["1e308", DIGITS, "NaN", "Infinity", '"x"', "true"])
def test_hostile_durations_do_not_decide_what_a_codec_learns_from(tmp_path: Path, value: str) -> None:
    put(tmp_path / "m.jsonl", '{"audio": "a.wav", "text": "x", "duration": 1}', f'{{"duration": {value}}}')
    assert total_seconds(tmp_path / "m.jsonl") is None


def test_a_codec_is_learnt_beside_one_duration_that_is_far_too_long(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", seconds=2.0)
    put(tmp_path / "m.jsonl", *(json.dumps({"audio": "a.wav", "text": "x", "duration": 9e7}) for _ in range(3)))
    learn = ["--codec", "melvq", "--train-codec", "--sample-rate", str(RATE), "--codebook-size", "8"]
    main(["encode", "--manifest", str(tmp_path / "m.jsonl"), *learn, "--out", str(tmp_path / "codes")])
    assert len(read_entries(tmp_path / "codes" / "part-00000.jsonl")) == 3


def test_manifests_may_be_compressed(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", seconds=1.0)
    lines = [json.dumps({"audio": "a.wav", "text": str(number)}) for number in range(7)]
    plain = put(tmp_path / "m.jsonl", *lines)
    packed = tmp_path / "m.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    learn = ["--codec", "melvq", "--train-codec", "--sample-rate", str(RATE), "--codebook-size", "8"]
    for path, out in ((plain, "plain"), (packed, "packed")):
        main(["encode", "--manifest", str(path), *learn, "--part-size", "3", "--out", str(tmp_path / out)])
    for number in range(3):
        name = f"part-{number:05d}.bin"
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()
    assert [entry["text"] for _, entry in read_manifest(packed, Problems())] == list("0123456")
    packed.write_bytes(packed.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"m\.jsonl\.gz: is damaged or cut off"):
        main(["encode", "--manifest", str(packed), *learn, "--out", str(tmp_path / "cut")])


@given(st.text(st.characters(), max_size=30))
def test_a_message_is_one_line_of_text(text: str) -> None:
    line = one_line(text)
    line.encode("utf-8")
    assert len(line.splitlines()) <= 1
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in line)
    if text.isprintable():
        assert line == text


def test_a_long_message_keeps_its_place_and_remedy() -> None:
    told = str(UserError(f"m.jsonl:3: field 'x' is {'9' * 10**6}; correct it"))
    assert told.startswith("m.jsonl:3: field 'x' is 999") and told.endswith("9; correct it")
    assert len(told) < MAX_MESSAGE + 100


@pytest.mark.parametrize("key", ["audio_filepath", "wav", "path"])
def test_a_manifest_of_another_tool_is_told_its_reader(key: str) -> None:
    with pytest.raises(
        UserError, match=rf"a:1: field 'audio' is missing .*'{key}' has one: `data_prep manifest --reader table`"
    ):
        parse_entry(json.dumps({key: "clips/0.WAV", "text": "one"}), "a:1")
