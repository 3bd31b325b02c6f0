"""tools/report.py on run folders of any age and state: what is there is shown, nothing is fetched, nothing is trusted."""

import json
import re
import sys
from pathlib import Path

import pytest

from ttt_dist.config.loader import save_config
from ttt_dist.config.run import Config
from ttt_dist.evaluation import report as pieces
from ttt_dist.telemetry import curves
from ttt_dist.telemetry.curves import Marks
from ttt_dist.telemetry.events import EventKind, Events, read_events, with_silent_ends
from ttt_dist.telemetry.json_lines import read_metrics
from ttt_dist.tools import report
from ttt_dist.util.errors import UserError

ALL = ("Loss", "Loss by noise", "Optimisation", "Speed", "Time of a step", "Events", "Profile", "Configuration")


def record(step: int) -> dict:
    """What a run on CPU writes at a step."""
    seconds = {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.1, "communication": 0.2}
    return {
        "step": step, "loss": 3.0, "ar_loss": 1.0, "nar_loss": 2.0, "grad_norm": 0.5, "lr": 1e-3, "skipped_steps": 0,
        **{f"{name}_s": value for name, value in seconds.items()}, "step_s": 1.0, "data_share": 0.1,
        "useful_tokens_per_s": 1000.0, "memory_bytes": 10**9, "slowest_rank": 1, "slowest_ratio": 1.2,
        "nar_loss_p0.0-0.2": 1.0, "nar_tokens_p0.0-0.2": 5.0, "nar_loss_p0.8-1.0": 2.0, "nar_tokens_p0.8-1.0": 9.0,
    }  # fmt: skip


def write(run: Path, records: list[dict]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in records))


def page_of(run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["report.py", str(run)])
    report.main()
    page = (run / "report.html").read_text(encoding="utf8")
    assert not re.search(r"(src|href)=.(?!data:|#)[^'\"> ]*//", page)
    return page


def titles(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_a_training_run_without_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record(step) for step in range(10, 60, 10)] + [{"step": 50, "eval_ar_loss": 1.1}])
    Events(tmp_path).log("start", 0, world_size=2)
    save_config(Config(), tmp_path / "config.yaml")
    (tmp_path / "export" / "codec").mkdir(parents=True)  # one that needs more than a report should: it is not opened
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "steps-3-4-rank-00000.txt").write_text("aten::mm <1 s>")
    page = page_of(tmp_path, monkeypatch)
    assert titles(page) == list(ALL)
    assert "aten::mm &lt;1 s&gt;" in page
    assert page.count("<svg") == 5
    for shown in ("text (AR), nats", "gradient norm", "useful tokens a second", "communication", "p 0.8 to 1.0"):
        assert shown in page


def test_an_old_run_shows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"step", "loss", "ar_loss", "nar_loss", "useful_tokens_per_s", "data_share", "step_s"}
    old = {key: value for key, value in record(10).items() if key in kept} | {"forward_backward_s": 0.8}
    write(tmp_path, [old])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')  # the run is still writing
    page = page_of(tmp_path, monkeypatch)
    assert titles(page) == ["Loss", "Speed", "Time of a step"]
    assert "forward and backward" in page


def test_a_run_that_has_just_begun_and_one_that_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [])
    assert titles(page_of(tmp_path, monkeypatch)) == []
    write(tmp_path, [record(10) | dict.fromkeys(("loss", "ar_loss", "nar_loss", "grad_norm"))])
    assert "Optimisation" in titles(page_of(tmp_path, monkeypatch))


DAMAGED = {
    "a broken line": ("metrics.jsonl", b'{"step": 20, "lo\n'),
    "no text": ("metrics.jsonl", b"\xff\xfe\x00\n"),
    "a list": ("metrics.jsonl", b"[1, 2]\n"),
    "no step": ("metrics.jsonl", b'{"loss": 1.0}\n'),
    "a step of another kind": ("metrics.jsonl", b'{"step": "many", "loss": 1.0}\n'),
    "a value of another kind": ("metrics.jsonl", b'{"step": 20, "loss": "low"}\n'),
    "a number without end": ("metrics.jsonl", b'{"step": 20, "loss": ' + b"9" * 401 + b"}\n"),
    "nested": ("metrics.jsonl", b"[" * 100_000 + b"\n"),
    "an event of no kind": ("events.jsonl", b'{"time": 3, "step": "x", "event": []}\n'),
    "an event of no step": ("events.jsonl", b'{"time": "2026", "event": "start"}\n'),
    "an evaluation of no texts": ("results/asr.jsonl", b'{"id": 3}\nnull\n'),
    "environment of no kind": ("environment.json", b"[]"),
    "broken environment": ("environment.json", b'{"hardware": '),
    "broken summary": ("results/asr_summary.json", b"\xff"),
    "broken figures": ("figures.json", b"{"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_left_out_with_a_word(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [record(step) for step in (10, 20)])
    log_all(tmp_path, [("start", 0), ("checkpoint", 20)])
    (tmp_path / "results").mkdir()
    for last in (b"", json.dumps(record(30)).encode() + b"\n") if name == "metrics.jsonl" else (b"",):
        with (tmp_path / name).open("ab") as file:
            file.write(content + last)
    page = page_of(tmp_path, monkeypatch)
    assert "<b>30</b><span>steps" in page or name != "metrics.jsonl"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: {tmp_path / name}: "), warnings
    assert ": line(s) " in warnings[0] or "is left out" in warnings[0]


def test_settings_and_profiles_of_any_bytes_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record(10)])
    (tmp_path / "profile").mkdir()
    for name in ("config.yaml", "profile/steps-1-1-rank-00000.txt"):
        (tmp_path / name).write_bytes(b"a: \xff")
    log_all(tmp_path, [("fault", 3)], reason="\ud800")
    assert {"Profile", "Configuration", "Events"} <= set(titles(page_of(tmp_path, monkeypatch)))


def test_old_records_without_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [{"step": 7, "loss": None, "mfu": None}])
    assert "<b>7</b><span>steps" in page_of(tmp_path, monkeypatch)


def test_steps_that_were_done_again_are_shown_once(tmp_path: Path) -> None:
    """Where metrics.jsonl could not be rewritten at the start."""
    evaluated = {"step": 20, "eval_loss": 1.0}
    write(tmp_path, [record(10), record(20), evaluated, record(30), record(20) | {"loss": 2.5}, evaluated, record(30)])
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r.get("loss")) for r in records] == [(10, 3.0), (20, 2.5), (20, None), (30, 3.0)]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        page_of(tmp_path, monkeypatch)


def log_all(run: Path, events: list[tuple[EventKind, int]], **fields: object) -> list[dict]:
    for event, step in events:
        Events(run).log(event, step, **fields)
    return with_silent_ends(read_events(run))


def test_restarts_and_faults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [record(step) for step in range(10, 60, 10)])
    log_all(
        tmp_path, [("start", 0), ("checkpoint", 20), ("start", 20), ("stop", 30), ("start", 30), ("skipped_step", 35)]
    )
    log_all(tmp_path, [("fault", 40)], reason="<script>rank 3</script>" + "x" * 500)
    page = page_of(tmp_path, monkeypatch)
    assert "3 starts, 1 stop, 2 faults, 1 skipped step, 1 checkpoint." in page
    for shown in ("ended without a word", "dashed lines", "red lines", "ticks at the bottom", "<b>2</b><span>restarts"):
        assert shown in page
    assert "<script>" not in page and "x" * 300 not in page


def test_marks_stand_where_things_happened(tmp_path: Path) -> None:
    killed = log_all(tmp_path, [("start", 0), ("checkpoint", 20), ("start", 20), ("skipped_step", 25), ("fault", 30)])
    for step in (0, 22, 22):  # the second time after the fault
        Events(tmp_path).log("stage", step, stage=bool(step))
    marks = Marks.of([*killed, *read_events(tmp_path)[-3:]])
    assert marks == Marks(restarts=[20], faults=[20, 30], skipped=[25], stages=[22])
    assert marks.explained().endswith("green lines where a stage of the objective begins.")
    figure = curves.losses([record(10), record(40)], marks)
    assert figure is not None
    for axis in figure.axes:
        lines = {(line.get_color(), tuple(line.get_xdata())) for line in axis.lines}
        assert {(curves.GREY, (20, 20)), (curves.RED, (20, 20)), (curves.RED, (30, 30)), (curves.RED, (25,))} <= lines
        assert (curves.GREEN, (22, 22)) in lines


def test_sources_and_tasks_have_curves_where_there_are_several() -> None:
    alone = {"step": 10, "task_text_to_text_share": 1.0, "task_text_to_text_ar_loss": 2.0}
    assert curves.by_group([alone], Marks()) is None
    calls = {"source_calls_share": 0.25, "source_calls_ar_loss": 4.0, "source_calls_nar_loss": 5.0}
    books = {"source_books_share": 0.75, "source_books_ar_loss": 3.0}
    figure = curves.by_group([{**alone, **calls}, {**alone, **books, "step": 20}], Marks())
    assert figure is not None
    drawn = [[(line.get_label(), line.get_color(), *line.get_ydata()) for line in axis.lines] for axis in figure.axes]
    blue, orange = curves.COLOURS[:2]
    assert drawn == [[("books", blue, 3.0), ("calls", orange, 4.0)], [("calls", orange, 5.0)]]


@pytest.mark.parametrize("end", ["stop", "fault", "finish"])
def test_a_start_after_an_end_is_no_fault(tmp_path: Path, end: EventKind) -> None:
    events: list[tuple[EventKind, int]] = [("start", 0), (end, 5), ("start", 5)]
    assert [e["event"] for e in log_all(tmp_path, events)] == ["start", end, "start"]


def test_areas_add_up_to_the_step_and_long_runs_are_thinned() -> None:
    figure = curves.step_split([record(step) for step in range(5000)], Marks())
    assert figure is not None
    (axis,) = figure.axes
    top = axis.collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(1.0)
    assert len(axis.lines[0].get_xdata()) <= curves.MOST_AREAS


def test_text_is_escaped_and_pieces_are_not() -> None:
    cells = [
        ["<b>one</b>", pieces.bad("a & b")],
        [pieces.lines(["<i>", "two"]), pieces.marked("one <two>", "one 'three'")],
    ]
    made = str(pieces.section("A > B", "what's seen", pieces.table(["<x>", ""], cells)))
    assert "<h2>A &gt; B</h2><p class=note>what&#39;s seen</p>" in made
    assert "<td>&lt;b&gt;one&lt;/b&gt;</td><td><span class=bad>a &amp; b</span></td>" in made
    assert "<td>&lt;i&gt;<br>two</td>" in made
    assert "<span class=ok>one</span> <del>&lt;two&gt;</del> <ins>&#39;three&#39;</ins>" in made
    assert pieces.page("<t>", "", [made]).count("<h2>") == 0  # a string is no piece
