"""`data_prep filter`: what is kept is what a plain loop over the lines keeps, byte for byte, and all else is counted."""

import json
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.corpus_report import Totals
from data_prep.selection.expressions import MAX_DEPTH, parse_expression
from data_prep.selection.rules import IsNew, bounds
from ttt_dist.manifest.entry import parse_line, parse_plain_line, parse_plain_lines
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import SeenIds, read_manifest
from ttt_dist.util.errors import UserError

ENTRY = {"id": "a", "audio": "a.wav", "text": "hello there", "duration": 2.0, "lang": "en", "speaker": "ann"}


def write_manifest(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf8", newline="")
    return path


def filtered(tmp_path: Path, source: Path, *flags: str) -> tuple[list[str], dict[str, Any]]:
    """Ids of what is kept, and the report."""
    out = tmp_path / "out.jsonl"
    main(["filter", "--manifest", str(source), "--out", str(out), *flags])
    ids = [entry["id"] for _, entry in read_manifest(out, Problems())]
    return ids, json.loads((tmp_path / "out.jsonl.report.json").read_text())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_manifest(
        tmp_path / "in.jsonl",
        ENTRY,
        {**ENTRY, "id": "long", "duration": 30},
        {**ENTRY, "id": "slow", "audio": "slow.wav", "text": "hm"},
        {**ENTRY, "id": "zh", "text": "你好", "lang": "zh", "speaker": "bo", "confidence": "0.5", "num_codes": 25},
        {**ENTRY, "id": "again", "audio": "b.wav", "text": " Hello  THERE", "confidence": 0.99, "meta": {"snr": 12}},
        {"id": "bare", "audio": "c.wav", "text": "x", "lang": "en"},
    )


@pytest.mark.parametrize(
    ("flags", "kept", "reasons"),
    [
        (["--max", "duration=20"], "a slow zh again", {"duration above 20": 1, "no number 'duration'": 1}),
        (["--min", "duration=5", "--max", "duration=40"], "long", {"duration below 5": 4, "no number 'duration'": 1}),
        (
            ["--min", "chars_per_second=3"],
            "a again",
            {"chars_per_second below 3": 3, "no number 'chars_per_second'": 1},
        ),
        (["--max", "codes_per_second=13"], "zh", {"no number 'codes_per_second'": 5}),
        (["--min", "confidence=0.5"], "zh again", {"no number 'confidence'": 4}),
        (["--min", "meta.snr=10"], "again", {"no number 'meta.snr'": 5}),
        (["--lang", "zh,de"], "zh", {"lang not wanted": 5}),
        (["--speaker", "ann"], "a long slow again", {"speaker not wanted": 2}),
        (["--unique", "text"], "a slow zh bare", {"text came before": 2}),
        (["--unique", "audio"], "a slow again bare", {"audio came before": 2}),
        (["--unique", "speaker"], "a zh bare", {"speaker came before": 3}),
        (
            ["--where", "lang == 'en' and duration < 20"],
            "a slow again",
            {"not --where lang == 'en' and duration < 20": 3},
        ),
        (["--unique", "text", "--max", "duration=2", "--lang", "en"], "a slow", None),
    ],
)
def test_rules(source: Path, tmp_path: Path, flags: list[str], kept: str, reasons: dict[str, int] | None) -> None:
    ids, report = filtered(tmp_path, source, *flags)
    assert ids == kept.split()
    told = {reason: tally["count"] for reason, tally in report["skipped"].items()}
    assert reasons is None or told == reasons
    assert sum(told.values()) + len(ids) == 6
    assert report["made_by"] == "filter" and report["manifests"]["out.jsonl"]["lines"] == len(ids)
    assert all(place.startswith(f"{source}:") for tally in report["skipped"].values() for place in tally["places"])
    main(["verify", str(tmp_path / "out.jsonl")])


def test_what_is_kept_stays_as_it_was_read(tmp_path: Path) -> None:
    odd = '{ "duration":2.50 ,"audio":"a.wav", "text":"\\u4f60\\u597d", "extra": [1, {"b": NaN}] }'
    lines = [odd, '{"id": 7, "audio": "b.wav", "text": "七", "duration": 1}\r', json.dumps({**ENTRY, "duration": 99})]
    source = write_manifest(
        tmp_path / "in.jsonl", *lines, '{"audio": "d.wav", "text": "no end of line", "duration": 3}'
    )
    out = tmp_path / "out.jsonl"
    main(["filter", "--manifest", str(source), "--out", str(out), "--max", "duration=20"])
    read = source.read_bytes().split(b"\n")
    assert out.read_bytes() == b"\n".join([read[0], read[1], read[3], b""])


def test_paths_lead_to_the_same_files_from_another_folder(tmp_path: Path) -> None:
    absolute = {**ENTRY, "id": "abs", "audio": str(tmp_path / "x.wav")}
    document = {"id": "d", "audio": "d.wav", "duration": 1.0, "segments": [{"text": "x", "offset": 0.0}]}
    source = write_manifest(tmp_path / "lists" / "in.jsonl", ENTRY, absolute, document)
    out = tmp_path / "out" / "kept.jsonl"
    main(["filter", "--manifest", str(source), "--out", str(out), "--max", "duration=20"])
    found = {entry["id"]: entry["audio"] for _, entry in read_manifest(out, Problems())}
    assert {name: out.parent / path for name, path in found.items()} == {
        "a": tmp_path / "lists" / "a.wav",
        "abs": tmp_path / "x.wav",
        "d": tmp_path / "lists" / "d.wav",
    }
    assert out.read_bytes().split(b"\n")[1] == json.dumps(absolute).encode()


def test_bad_lines_count_against_max_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_manifest(tmp_path / "in.jsonl", ENTRY, "{not json", ENTRY, "", {**ENTRY, "id": "b"})
    source.write_bytes(source.read_bytes() + b"\n\xff\n")
    with pytest.raises(UserError, match=r"3 bad files or lines.*the 2 lines that are kept were written"):
        filtered(tmp_path, source, "--max", "duration=20")
    ids, report = filtered(tmp_path, source, "--max", "duration=20", "--max-errors", "3")
    assert ids == ["a", "b"]
    assert {reason: tally["count"] for reason, tally in report["errors"].items()} == {
        "bad line": 1,
        "id came before": 1,
        "not UTF-8": 1,
    }
    assert f"{source}:3: id 'a' came before" in capsys.readouterr().err


def test_what_cannot_be_done_is_refused(source: Path, tmp_path: Path) -> None:
    same = ["filter", "--manifest", str(source), "--out"]
    for more in (
        [str(tmp_path / "o")],
        [str(source), "--max", "duration=1"],
        [str(tmp_path / "o"), "--min", "duration"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*same, *more])
    with pytest.raises(UserError, match="no line is left; loosen a rule"):
        main([*same, str(tmp_path / "o"), "--max", "duration=0.1"])


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("duration < 20", True),
        ("1 < duration < 2", False),
        ("1 < duration <= 2 and speaker in ('ann', 'bo')", True),
        ("lang not in ['de'] and not speaker == 'bo'", True),
        ("'there' in text", True),
        ("len(text) / duration > 5.4", True),
        ("len(text) - 11 == 0 and -duration == -2", True),
        ("chars_per_second > 5.4", True),
        ("snr > 3", False),
        ("snr < 3 or text < 3", False),
        ("snr == None and meta.snr == None", True),
        ("snr != None", False),
        ("duration / 0 > 1", False),
        ("duration in text", False),
        ("len(duration) > 1", False),
        ("speaker in (lang, 'ann')", True),
    ],
)
def test_expressions(expression: str, wanted: bool) -> None:
    assert bool(parse_expression(expression)(ENTRY)) is wanted


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "text.upper()",
        "().__class__",
        "text[0] == 'a'",
        "[x for x in text]",
        "lambda: 1",
        "f'{text}'",
        "len(text, text)",
        "len(*text)",
        "open('x')",
        "2 ** 99999999",
        "1 << 9",
        "~1",
        "b'x' in text",
        "(x := 3)",
        "x if y else z",
        "duration <",
        "duration = 3",
        "",
        "a\0b",
        "not " * (MAX_DEPTH + 1) + "a",
        "(" * 300 + "a" + ")" * 300,
        "a or " * 3000 + "b",
    ],
)
def test_expressions_that_are_refused(expression: str) -> None:
    with pytest.raises(UserError, match="--where"):
        parse_expression(expression)


NUMBERS = st.one_of(st.integers(-5, 5), st.floats(-5, 5))
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


@given(NUMBERS, NUMBERS, st.sampled_from(sorted(COMPARISONS)), NUMBERS, st.sampled_from(["and", "or"]))
def test_expressions_are_what_python_makes_of_them(x: float, y: float, sign: str, limit: float, join: str) -> None:
    found = parse_expression(f"x {sign} {limit!r} {join} not y {sign} x")({"x": x, "y": y})
    first, second = COMPARISONS[sign](x, limit), not COMPARISONS[sign](y, x)
    assert found == ((first and second) if join == "and" else (first or second))


@given(st.lists(NUMBERS, max_size=20), NUMBERS, NUMBERS)
def test_bounds_keep_what_lies_between(values: list[float], low: float, high: float) -> None:
    (rule,) = bounds({"x": low}, {"x": high})
    assert [rule({"x": value}) is None for value in values] == [low <= value <= high for value in values]
    assert rule({"x": float("nan")}) == rule({}) == rule({"x": True}) == "no number 'x'"


def test_the_same_recording_is_told_by_place_and_checksum() -> None:
    news, piece = IsNew("audio"), {"audio": "a.wav", "offset": 1.0}
    tar = {"audio": "a.tar", "member": {"offset": 0, "size": 9}}
    cases = [
        ({"audio": "a.wav"}, True),
        (piece, True),
        (piece, False),
        ({**piece, "offset": 2.0}, True),
        (tar, True),
        ({**tar, "member": {"offset": 512, "size": 9}}, True),
        (tar, False),
        ({"audio": "x.wav", "sha256": "9f"}, True),
        ({"audio": "y.wav", "sha256": "9f"}, False),
        ({"segments": [{**piece, "text": "a"}, {"text": "b", "audio": "b.wav"}]}, True),
        ({"turns": [{"role": "user", "text": "words alone"}]}, True),
        ({"turns": [{"role": "user", "text": "words alone"}]}, True),
    ]
    for start, end in ((0, 5), (5, len(cases))):
        assert news.among([entry for entry, _ in cases[start:end]]) == [new for _, new in cases[start:end]]


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.text(max_size=3), st.integers()),
        "audio": st.one_of(
            st.sampled_from(["a.wav", "", "x" * 300, "d/" * 40 + "a", "\0"]), st.integers(), st.just([])
        ),
        "text": st.one_of(st.text(max_size=5), st.integers(), st.just("\ud800")),
        "duration": st.one_of(st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=2)),
        "offset": st.one_of(st.floats(), st.none()),
        "label": st.text(max_size=2),
        "turns": st.just([]),
        "gaps": st.just([0.1]),
        "more": st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=4),
    },
)


@given(FIELDS, st.booleans(), st.sampled_from(["\n", "", "\r\n", " \n", "x\n", "{}\n"]))
def test_the_quick_way_to_read_a_line_agrees_with_the_thorough_one(entry: dict, escaped: bool, end: str) -> None:
    raw = (json.dumps(entry, ensure_ascii=escaped) + end).encode("utf8", "surrogatepass")
    quick = parse_plain_line(raw)
    try:
        thorough = parse_line(raw, "f:1")
    except UserError:
        assert quick is None
    else:
        assert quick is None or json.dumps(quick) == json.dumps(thorough)


ODD_LINES = st.sampled_from(
    [
        '{"id": "a", "audio": "a.wav", "text": "x"}',
        '{"audio": "a.wav", "text": "}, {"}',
        '{"audio": "a.wav", "text": "[b"}',
        '{"audio": "a.wav", "text": "x"}, {"audio": "b.wav", "text": "y"}',
        '{"audio": "a.wav", "text": "x"}, 5',
        '{"audio": "a.wav", "text": "x"',
        '"text": "x", "audio": "a.wav"}',
        '{"audio": "a.wav", "text": "x',
        'y"}',
        '{"audio": "a.wav", "x": [{"text": "y"}',
        '{"audio": "a.wav"}]}',
        '{"audio": "a.wav", "text": "\\ud800"}',
        '{"audio": "a.wav", "text": "\\n\\\\"}  ',
        '  {"audio": "a.wav", "text": "x"}',
        '{"audio": "a.wav", "text": "x", "turns": null}',
        "",
        "5",
    ]
)


@given(st.lists(ODD_LINES, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_lines_read_together_are_those_read_one_by_one(lines: list[str], end: str) -> None:
    raws = [f"{line}{end}".encode() for line in lines]
    for found, raw in zip(parse_plain_lines(raws), raws, strict=True):
        try:
            thorough = parse_line(raw, "f:1")
        except UserError:
            assert found is None
        else:
            assert found in (None, thorough)
    if len(set(lines)) == 1 and lines[0] == '{"id": "a", "audio": "a.wav", "text": "x"}':
        assert None not in parse_plain_lines(raws)


@given(st.lists(st.text(max_size=1), max_size=30), st.integers(1, 30))
def test_ids_looked_up_together_are_those_looked_up_one_by_one(names: list[str], cut: int) -> None:
    one, many = SeenIds(), SeenIds()
    expected = [one.add(name) for name in names]
    found = many.add_all(names[:cut])
    many._merge()
    assert found + many.add_all(names[cut:]) == expected


@given(st.lists(st.tuples(st.floats(0, 9), st.sampled_from([None, "a", "b"]), st.sampled_from([None, 1])), max_size=20))
def test_totals_of_many_are_those_of_each(rows: list[tuple[float, str | None, int | None]]) -> None:
    entries = [{"duration": seconds, "split": split, "lang": lang} for seconds, split, lang in rows]
    one, many = Totals(), Totals()
    for entry in entries:
        one.add(entry)
    many.add_all(entries)
    assert one == many


def test_a_field_that_no_line_has_is_told(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, _ = filtered(tmp_path, source, "--where", 'speeker != "ann" and len(text) > 0 and meta != 3')
    assert len(kept) == 6  # None is not "ann": all lines are kept
    assert "warning: --where: no line has a field speeker; is it spelt so?" in capsys.readouterr().err
    filtered(tmp_path, source, "--where", "confidence == None or meta.snr > 3 or chars_per_second > 0")
    assert "no line has" not in capsys.readouterr().err
