"""What a job left out, and the report of it that stands beside a manifest."""

import json
from pathlib import Path

import pytest

from data_prep.corpus_report import Totals, provenance, report_of, write_report
from ttt_dist.data.metadata import is_rendered
from ttt_dist.manifest.problems import PLACES, Collected, Problems
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.console import print_error, print_rank0
from ttt_dist.util.errors import UserError


def test_as_many_as_the_user_allows_are_left_out() -> None:
    problems = Problems(limit=2, told=0)
    for number in range(2):
        problems.report(f"train.jsonl:{number}: bad")
        problems.raise_if_over_limit("nothing")
    problems.report("train.jsonl:2: bad")
    with pytest.raises(UserError, match=r"3 bad files or lines .* --max-errors 2 allows; 7 lines were kept"):
        problems.raise_if_over_limit("7 lines were kept")


def test_skips_count_by_reason_and_cost_nothing() -> None:
    problems = Problems(told=0)
    for number in range(PLACES + 5):
        problems.skip("too short", f"a.tsv:{number}")
    problems.skip("another split", "a.tsv:99")
    problems.raise_if_over_limit("all")
    skipped = problems.summary()["skipped"]
    assert list(skipped) == ["another split", "too short"]
    assert skipped["too short"]["count"] == PLACES + 5
    assert skipped["too short"]["places"] == [f"a.tsv:{number}" for number in range(PLACES)]


def test_names_of_any_bytes_can_be_written() -> None:
    problems = Problems(told=0)
    problems.report("\udcff.wav: bad", "not UTF-8")
    assert problems.summary()["errors"]["not UTF-8"]["places"] == ["\\udcff.wav: bad"]


def test_warnings_end_where_they_become_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    problems = Problems(limit=99, told=2)
    for number in range(5):
        problems.report(f"line {number}")
    told = capsys.readouterr().err
    assert [f"line {number}" in told for number in range(5)] == [True, True, False, False, False]
    assert told.count("more of the same") == 1


def test_a_part_hands_its_problems_on(capsys: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    Collected(messages).report(UserError("a.wav: broken"), "bad audio")
    assert messages == ["a.wav: broken"]
    assert capsys.readouterr().err == ""


def test_totals_add_hours_by_split_and_language() -> None:
    totals = Totals()
    for entry in (
        {"duration": 1800.0, "split": "train", "lang": "en"},
        {"duration": 900.0, "split": "train", "lang": "de"},
        {"duration": None, "split": "test"},
    ):
        totals.add(entry)
    assert totals.describe() == "3 utterances, 0.75 hours"
    assert totals.summary() == {
        "lines": 3,
        "hours": 0.75,
        "splits": {"test": {"lines": 1, "hours": 0.0}, "train": {"lines": 2, "hours": 0.75}},
        "langs": {"de": {"lines": 1, "hours": 0.25}, "en": {"lines": 1, "hours": 0.5}},
    }


def test_a_report_tells_where_its_manifest_comes_from(tmp_path: Path) -> None:
    manifest, corpus = tmp_path / "train.jsonl", tmp_path / "corpus"
    manifest.write_text("{}\n")
    assert provenance(manifest) == {"name": "train.jsonl"}
    problems = Problems(told=0)
    problems.skip("too short", "a:1")
    write_report(report_of(manifest), "librispeech", corpus, {manifest: Totals(lines=1)}, problems)
    assert report_of(manifest) == tmp_path / "train.jsonl.report.json"
    assert provenance(manifest) == {"name": "train.jsonl", "made_by": "librispeech", "source": str(corpus)}
    content = report_of(manifest).read_bytes()
    assert is_rendered(content)
    report = json.loads(content)
    assert report["manifests"]["train.jsonl"]["sha256"] == sha256_file(manifest)
    assert report["skipped"] == {"too short": {"count": 1, "places": ["a:1"]}}
    report_of(manifest).write_bytes(content.replace(b"librispeech", b"librispoken"))
    assert provenance(manifest) == {"name": "train.jsonl"}, "a report that was edited is believed"


NAMES = ["a\nerror: b", "\x1b]0;title\x07", "\x9b2J", "\u202egnp", "a\u2028b", "a\rb", "\udcff", "a\tb", "\x00"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_holds_stays_in_its_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever a message goes out: errors, warnings, the report, and what a job collects."""
    kept, collected = Problems(), []
    kept.report(f"{name}.wav: bad")
    kept.skip("too short", name)
    Collected(collected).report(UserError(f"{name}.wav: bad"))
    print_error(f"{name}.wav: bad")
    shown = f"{name.encode('unicode_escape').decode()}.wav: bad"
    assert [str(UserError(f"{name}.wav: bad")), *collected] == [shown, shown]
    assert capsys.readouterr().err == f"warning: {shown}\nerror: {shown}\n"
    assert kept.summary()["errors"]["bad line"]["places"] == [shown]
    assert kept.summary()["skipped"]["too short"]["places"] == [shown.removesuffix(".wav: bad")]


def test_names_in_any_script_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("naïve.wav", "م\u200cی.wav", "a\\nb", "👩\u200d🚀", "\u05d0"):
        assert str(UserError(name)) == name
    print_rank0("two\tcolumns\nand lines, \u202bof text\u202c\x1b[2J")
    assert capsys.readouterr().out == "two\tcolumns\nand lines, \u202bof text\u202c\\x1b[2J\n"
