"""The evaluation command: each task from its data to its results, restarts, and everything that can be wrong with the data."""

import csv
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.evaluated import FEW, line, make_model, make_mute_model, make_workplace, read_lines, write_lines
from ttt_dist import evaluate
from ttt_dist.evaluation.summary import finishes
from ttt_dist.evaluation.tasks.registry import TASKS
from ttt_dist.inference.decoder import Decoder
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.util.errors import UserError

pytestmark = pytest.mark.slow

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def run(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Evaluate into tmp_path/out; the summary, which is the last line on stdout and the file."""

    def command(task: str, data: Path | None = None, *words: object, model: str = "model") -> dict[str, Any]:
        out = tmp_path / "out"
        where = ["--model", workplace / model, "--data", data or workplace / "test.jsonl", "--out", out]
        path = list(sys.path)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, ["--task", task, *where, *words, *FEW])])
        capsys.readouterr()
        try:
            evaluate.main()
        finally:
            sys.path[:] = path
        summary = json.loads((out / f"{task}_summary.json").read_text())
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
        return summary

    return command


def records(tmp_path: Path, task: str) -> list[dict[str, Any]]:
    return read_lines(tmp_path / "out" / f"{task}.jsonl")


def test_asr(run: Evaluate, tmp_path: Path) -> None:
    summary = run("asr")
    found = records(tmp_path, "asr")
    assert [record["id"] for record in found] == [f"u/{number}" for number in range(4)]
    assert (summary["items"], summary["errors"], summary["judge"]) == (4, 0, None)
    edits = sum(record["words"][kind] for record in found for kind in ("substitutions", "deletions", "insertions"))
    assert summary["wer"] == summary["scores"]["wer"]["value"] == edits / 8
    low, high = summary["scores"]["wer"]["interval_95"]
    assert low <= summary["wer"] <= high
    assert summary["scores"]["cer"]["by"] == summary["normaliser"] == "basic"
    markdown = (tmp_path / "out" / "asr_summary.md").read_text()
    assert "| wer |" in markdown and "| basic |" in markdown and "temperature 0.0" in markdown
    page = (tmp_path / "out" / "asr.html").read_text()
    assert page.count("<audio") == 4 and "http" not in page
    for text in (markdown, page):
        assert "Words confused" in text and f"deletions ({summary['confusions']['deletions']['count']:,}, " in text


def test_the_language_chooses_the_normaliser(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    data = write_lines(workplace / "langs.jsonl", [line(0, lang="en"), line(1, lang="zh"), line(2)])
    assert run("asr", data)["normaliser"] == "basic + whisper-en (no spelling table) + zh-char"
    summary = run("asr", data, "--normaliser", "zh-char")  # scores are made anew of the records
    assert summary["normaliser"] == summary["scores"]["wer"]["by"] == "zh-char"


def test_tts_writes_speech_that_follows_from_the_seed(run: Evaluate, tmp_path: Path) -> None:
    outputs = []
    for _ in range(2):
        summary = run("tts", None, "--limit", 3, "--code-temperature", 1)
        outputs.append((tmp_path / "out" / "tts.jsonl").read_text())
        shutil.copytree(tmp_path / "out" / "wav", tmp_path / "wav", dirs_exist_ok=True)
        spoken = [record for record in records(tmp_path, "tts") if record["wav"]]
        assert spoken and summary["judge"] == "the model itself" and summary["items"] == 3
        seconds = sum(record["codes"] for record in spoken) / 25
        forwards = sum(record["audio_forwards"] for record in records(tmp_path, "tts"))
        assert summary["forwards_per_second"] == pytest.approx(forwards / seconds, abs=1e-4) and forwards
        total = sum(record["forwards"] for record in records(tmp_path, "tts"))
        assert summary["all_forwards_per_second"] == pytest.approx(total / seconds, abs=1e-4) and total > forwards
        for record in spoken:
            info = soundfile.info(tmp_path / "out" / record["wav"])
            assert (info.samplerate, info.frames) == (8000, record["codes"] * 320)
        shutil.rmtree(tmp_path / "out")
    assert outputs[0] == outputs[1]


def test_an_item_without_a_speaker_is_spoken_by_the_usual_one(
    run: Evaluate, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose training named its speakers has learnt nothing of prompts that name none."""
    named = workplace / "named"
    shutil.copytree(workplace / "model", named)
    (named / "speakers.json").write_text(json.dumps({"speakers": ["bob", "ann"]}))
    nobody = {key: value for key, value in line(1).items() if key != "speaker"}
    data = write_lines(tmp_path / "data.jsonl", [line(0), nobody])
    asked, write = [], ChatTemplate.prompt

    def prompt(self: ChatTemplate, name: str, entry: dict[str, Any], codes: Any) -> Any:
        if name == "tts":
            asked.append(entry.get("speaker"))
        return write(self, name, entry, codes)

    monkeypatch.setattr(ChatTemplate, "prompt", prompt)
    for names_speakers, speakers in ((True, ["ann", "bob"]), (False, ["ann", None])):
        (named / "template.json").write_text(json.dumps({"name_speaker": names_speakers}))
        asked.clear()
        run("tts", data, "--judge", "model", "--no-ceiling", model="named")
        assert asked == speakers
        shutil.rmtree(tmp_path / "out")


def test_a_judge_that_hears_everything(run: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("import sys; open(sys.argv[2], 'w').write('One, two!')")
    command = f"command:{shlex.join([sys.executable, str(tmp_path / 'judge.py')])} {{wav}} {{text}}"
    summary = run("tts", None, "--judge", command)
    spoken = sum(record["wav"] is not None for record in records(tmp_path, "tts"))
    assert summary["words"] == {"hits": 2 * spoken, "substitutions": 0, "deletions": 8 - 2 * spoken, "insertions": 0}
    assert summary["judge"] == command


def hears(path: Path, *lines: str) -> str:
    """A judge: a program that has `wave` and `rate` and sets `text`."""
    program = ["import sys, pathlib, soundfile", "wave, rate = soundfile.read(sys.argv[1])", "text = ''"]
    path.write_text("\n".join([*program, *lines, "open(sys.argv[2], 'w').write(text)"]))
    return f"command:{shlex.join([sys.executable, str(path)])} {{wav}} {{text}}"


def test_each_judge_is_shown_beside_its_ceiling(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    right = hears(tmp_path / "right.py", "text = '1 2'")
    endless = hears(tmp_path / "endless.py", "text = 'one two ' * 500")
    judges = ["--judge", "model", "--judge", right, "--judge", endless, "--normaliser", "spelt-en"]
    summary = run("tts", None, *judges)
    found, judged = records(tmp_path, "tts"), summary["judges"]
    assert list(judged) == ["model", "command", "command_2"]
    assert [judge["own_ears"] for judge in judged.values()] == [True, False, False]
    spoken = sum(record["wav"] is not None for record in found)
    assert spoken and summary["wer"] == judged["model"]["speech"]["value"]
    assert judged["command"]["speech"]["value"] == round(1 - spoken / 4, 6)
    assert judged["command"]["recording"]["value"] == judged["command"]["codec"]["value"] == 0
    # Of 1,000 words four count: as many again as the reference has.
    assert judged["command_2"]["recording"]["value"] == judged["command_2"]["codec"]["value"] == 1
    assert (judged["command_2"]["num_cut"], judged["command"]["num_cut"]) == (spoken, 0)
    assert "2 words per word" in summary["cut"]
    assert len(found[0]["heard"]["recording"]["command_2"].split()) == 1000
    markdown, page = ((tmp_path / "out" / f"tts{end}").read_text() for end in ("_summary.md", ".html"))
    for text in (markdown, page):
        assert "the model itself (its own ears)" in text and "through the codec" in text and "2 words per word" in text
    assert "got by command_2" in page

    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="is named twice"):
        run("tts", None, "--judge", "model", "--judge", "model")


def test_responses_that_a_limit_cut_off_are_counted_and_told(
    run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("ttt_dist.inference.limits.warn", told.append)
    summary = run("tts", None, "--max-codes", "3")
    reasons = [record["finish"] for record in records(tmp_path, "tts")]
    cut = reasons.count("max_codes")
    assert cut and summary["finishes"] == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    wanted = f"of 4 responses did not end, a limit cut them off (max_codes {cut}"
    assert any(wanted in line and "--repeats drawn" in line for line in told), told
    assert f"cut off by a limit: max_codes {cut}" in (tmp_path / "out" / "tts_summary.md").read_text()
    told.clear()
    shutil.rmtree(tmp_path / "out")
    run("tts", None, "--max-codes", "3", "--repeats", "drawn")
    assert any(
        line.endswith(": raise --max-codes and --max-text") or line.endswith(": raise --max-codes") for line in told
    ), told
    chat = {"answers": [{"finish": "end_of_turn"}, {"finish": "max_length"}]}
    assert finishes([chat, {"answers": ["a text that is right"]}]) == {"finishes": {"end_of_turn": 1, "max_length": 1}}
    assert finishes([{"nar_loss": 1.0}]) == {}


def test_a_recording_that_is_gone_costs_its_ceiling_alone(
    run: Evaluate, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(
        workplace / "some.jsonl", [line(0), line(1, audio="gone.wav"), {"text": "one", "id": "text alone"}]
    )
    summary = run("tts", data, "--judge", hears(tmp_path / "judge.py", "text = 'one two'"))
    assert (summary["items"], summary["errors"]) == (3, 0)
    assert {source: summary["judges"]["command"][source]["items"] for source in ("speech", "recording", "codec")} == {
        "speech": 3, "recording": 1, "codec": 1,
    }  # fmt: skip


def test_own_speech_alone_is_judged_where_no_ceiling_is_asked_for(run: Evaluate, tmp_path: Path) -> None:
    judge = hears(tmp_path / "judge.py", "text = 'one two'")
    whole = run("tts", None, "--judge", judge)["judges"]["command"]
    shutil.rmtree(tmp_path / "out")
    alone = run("tts", None, "--judge", judge, "--no-ceiling")["judges"]["command"]
    assert alone["speech"] == whole["speech"] and "codec" in whole
    assert not {"codec", "recording"} & alone.keys()


def test_answers_are_right_as_each_judge_hears_them(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    questions = [{"id": str(n), "question": "Which number?", "answers": ["seven"]} for n in range(3)]
    data = write_lines(workplace / "sevens.jsonl", questions)
    deaf, good = hears(tmp_path / "deaf.py"), hears(tmp_path / "good.py", "text = 'Seven!'")
    summary = run("audio_qa", data, "--judge", deaf, "--judge", good)
    spoken = sum(record["wav"] is not None for record in records(tmp_path, "audio_qa"))
    assert (summary["speech_accuracy"], summary["speech_command_2_accuracy"]) == (0, round(spoken / 3, 6))


def test_a_judge_that_fails_once_costs_one_item(run: Evaluate, tmp_path: Path) -> None:
    program = "import sys, pathlib; calls = pathlib.Path(sys.argv[3]); calls.open('a').write('x')\n"
    program += "len(calls.read_text()) < 3 and sys.exit('no ears')\nopen(sys.argv[2], 'w').write('one two')"
    (tmp_path / "judge.py").write_text(program)  # the first item fails in the batch, and again alone
    command = (
        f"command:{shlex.join([sys.executable, str(tmp_path / 'judge.py')])} {{wav}} {{text}} {tmp_path / 'calls'}"
    )
    summary = run("tts", None, "--judge", command, "--max-errors", 1)
    assert (summary["items"], summary["errors"]) == (3, 1)
    assert "test.jsonl:1: --judge: " in summary["problems"][0] and "no ears" in summary["problems"][0]


def test_audio_qa_scores_text_and_speech_apart(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    questions = [
        {"id": "spoken", "audio": "0.wav", "question": "Which number?", "answers": ["seven"]},
        {"id": "written", "question": "Which number?", "answer": {"value": "7", "aliases": ["nine"]}},
        {"id": "instruction", "instruction": "Tell a joke.", "dataset": "helpful_base"},
    ]
    data = write_lines(workplace / "questions.jsonl", questions)
    (tmp_path / "judge.py").write_text("import sys; open(sys.argv[2], 'w').write('It is Nine.')")
    judge = f"command:{shlex.join([sys.executable, str(tmp_path / 'judge.py')])} {{wav}} {{text}}"
    summary = run("audio_qa", data, "--judge", judge)
    found = {record["id"]: record for record in records(tmp_path, "audio_qa")}
    assert [found["written"]["answers"], found["instruction"]["answers"]] == [["7", "nine"], []]
    right = [bool(record["wav"]) and name == "written" for name, record in found.items() if record["answers"]]
    assert summary["speech_accuracy"] == sum(right) / 2
    assert (summary["without_answers"], summary["scores"]["text_accuracy"]["items"]) == (1, 2)
    (output,) = json.loads((tmp_path / "out" / "alpaca_eval_speech.json").read_text())
    assert (output["dataset"], output["instruction"]) == ("helpful_base", "Tell a joke.")
    assert output["output"] == ("It is Nine." if found["instruction"]["wav"] else "")

    shutil.rmtree(tmp_path / "out")
    assert "speech_accuracy" not in run("audio_qa", data, "--text-only")
    assert not (tmp_path / "out" / "wav").exists()


def test_captions_of_a_table(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    rows = ["file_name,caption_1,caption_2", '0.wav,"A dog, barking",A dog', "1.wav,Rain,Heavy rain"]
    (tmp_path / "clotho.csv").write_text("\n".join(rows) + "\n")
    summary = run("caption", tmp_path / "clotho.csv", "--audio-root", workplace)
    assert summary["items"] == 2 and records(tmp_path, "caption")[0]["captions"] == ["A dog, barking", "A dog"]
    assert {"bleu", "rouge_l", "cider_d"} <= set(summary["scores"])
    assert summary["scores"]["bleu"]["by"].startswith("BLEU, sacrebleu")
    assert "meteor" not in summary["scores"]
    with (tmp_path / "out" / "aac_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["captions"]) for row in rows] == [["A dog, barking", "A dog"], ["Rain", "Heavy rain"]]
    assert [row["caption_predicted"] for row in rows] == [one["hypothesis"] for one in records(tmp_path, "caption")]


def test_classification(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    said = [record["hypothesis"] for record in (run("asr"), records(tmp_path, "asr"))[1]]
    labels = [said[0] or "nothing", "dog", "dog", "cat"]
    data = write_lines(workplace / "labels.jsonl", [line(n, label=label) for n, label in enumerate(labels)])
    summary = run("classification", data)
    found = records(tmp_path, "classification")
    assert summary["accuracy"] == sum(record["is_right"] for record in found) / 4
    assert summary["outside_labels"] == sum(record["given"] is None for record in found)
    assert set(summary["classes"]) == set(labels)


def test_chats_are_answered_turn_by_turn_and_written_for_their_judges(
    run: Evaluate, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = [
        {"round": n, "source_wav": f"{n}.wav", "source_text": f"question {n}", "target_text": "x"} for n in (0, 1)
    ]
    data = write_lines(workplace / "dialogues.jsonl", [{"id": 7, "num_round": 2, "dialogue": rounds}])
    asked: list[int] = []
    generate = Decoder.generate
    monkeypatch.setattr(
        Decoder,
        "generate",
        lambda self, requests, *rest: asked.extend(len(r.ids) for r in requests) or generate(self, requests, *rest),
    )
    summary = run("speech_chat", data)
    (record,) = records(tmp_path, "speech_chat")
    assert len(record["answers"]) == len(asked) == summary["answers"] == 2
    assert asked[1] > asked[0]  # the second question follows the first answer
    (told,) = read_lines(tmp_path / "out" / "uro_bench" / "output_with_text.jsonl")
    assert [turn["output_text"] for turn in told["dialogue"]] == [answer["text"] for answer in record["answers"]]
    assert (told["id"], told["num_round"], told["dialogue"][1]["source_text"]) == (7, 2, "question 1")
    for number, answer in enumerate(record["answers"]):
        assert (tmp_path / "out" / "uro_bench" / "7" / f"round_{number}_output.wav").exists() == bool(answer["wav"])

    shutil.rmtree(tmp_path / "out")
    single = [
        {"id": f"../{n}", "audio": f"{n}.wav", "prompt": f"question {n}", "reference": "x", "kind": n} for n in range(2)
    ]
    run("speech_chat", write_lines(workplace / "single.jsonl", ["broken", *single]), "--max-errors", 1)
    lines = read_lines(tmp_path / "out" / "voicebench.jsonl")
    assert [(one["prompt"], one["reference"], one["kind"]) for one in lines] == [
        ("question 0", "x", 0),
        ("question 1", "x", 1),
    ]
    texts = [record["answers"][0]["text"] for record in records(tmp_path, "speech_chat")]
    assert [one["response"] for one in lines] == texts
    assert read_lines(tmp_path / "out" / "uro_bench" / "pred_text.jsonl") == [{"0001": texts[0]}, {"0002": texts[1]}]
    assert not list(tmp_path.glob("*.wav"))


BAD = [
    ("not json", "is not JSON"),
    (json.dumps([1]), "is list, not an object"),
    (json.dumps({"id": "no text", "audio": "0.wav"}), "lacks 'text'"),
    (json.dumps({"id": "no audio", "text": "one"}), "lacks 'audio'"),
    (json.dumps({"id": "missing", "audio": "none.wav", "text": "one"}), "no such file"),
    (json.dumps({"id": "empty", "audio": "empty.wav", "text": "one"}), "empty file"),
    (json.dumps({"id": "noise", "audio": "noise.wav", "text": "one"}), "cannot be read as audio"),
    (json.dumps({"id": "outside", "audio": "/etc/hostname", "text": "one"}), "lies outside"),
    (json.dumps({"id": "u/0", "audio": "0.wav", "text": "one"}), "id 'u/0' came before"),
    (json.dumps({"id": "gap", "audio": ["0.wav"], "gaps": [-1], "text": "one"}), "field 'gaps'"),
    (json.dumps({"id": "long", "audio": ["0.wav"] * 40, "text": "one"}), "shorten it"),
]


@pytest.fixture(scope="module")
def short(workplace: Path) -> str:
    """The model with a limit of 300 tokens."""
    shutil.copytree(workplace / "model", workplace / "short")
    config = json.loads((workplace / "short" / "config.json").read_text())
    (workplace / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 300}))
    return "short"


def test_what_cannot_be_used_is_named_counted_and_left_out(
    run: Evaluate, workplace: Path, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "empty.wav").write_bytes(b"")
    (workplace / "noise.wav").write_bytes(b"noise" * 50)
    data = write_lines(workplace / "broken.jsonl", [line(0), *(text for text, _ in BAD), "", line(1)])
    with pytest.raises(UserError, match=f"{len(BAD)} line") as caught:
        run("asr", data, model=short)
    assert "\n" not in str(caught.value)
    told = capsys.readouterr().err
    for number, (_, message) in enumerate(BAD, start=2):
        assert any(f"broken.jsonl:{number}: " in one and message in one for one in told.splitlines()), (number, told)
    summary = run("asr", data, "--max-errors", len(BAD), model=short)
    assert (summary["items"], summary["errors"], len(summary["problems"])) == (2, len(BAD), len(BAD))
    assert [record["id"] for record in records(tmp_path, "asr")] == ["u/0", "u/1"]
    assert "none.wav" in (tmp_path / "out" / "asr_summary.md").read_text()


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"likelihood"}))
def test_where_nothing_can_be_used_there_are_no_scores(run: Evaluate, tmp_path: Path, task: str) -> None:
    with pytest.raises(UserError, match=r"2 line\(s\) could not be used, 0 were"):
        run(task, write_lines(tmp_path / "bad.jsonl", ["{", {"id": "a"}]), "--max-errors", 2)
    summary = json.loads((tmp_path / "out" / f"{task}_summary.json").read_text())
    assert (summary["items"], summary["errors"]) == (0, 2)
    assert {score["interval_95"] for score in summary["scores"].values()} <= {None}


def test_an_empty_text_and_one_that_is_too_long_cannot_be_spoken(
    run: Evaluate, workplace: Path, short: str, tmp_path: Path
) -> None:
    data = write_lines(workplace / "texts.jsonl", [{"text": " "}, {"text": "one " * 400}, {"text": "two"}])
    summary = run("tts", data, "--max-errors", 2, model=short)
    assert (summary["items"], summary["errors"]) == (1, 2)
    assert "texts.jsonl:1: 'text' is empty" in summary["problems"][0]
    assert "texts.jsonl:2: the prompt has" in summary["problems"][1]
    assert records(tmp_path, "tts")[0]["id"] == "3"


def test_a_file_that_was_put_right_is_taken_by_retry(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = write_lines(tmp_path / "data" / "test.jsonl", [line(0), line(1)])
    shutil.copy(workplace / "0.wav", tmp_path / "data")
    assert run("asr", data, "--max-errors", 1, "--part-size", 1)["errors"] == 1
    first = (tmp_path / "out" / "parts" / "asr" / "part-00000.json").stat().st_mtime_ns
    shutil.copy(workplace / "1.wav", tmp_path / "data")
    assert run("asr", data, "--max-errors", 1, "--part-size", 1)["errors"] == 1
    assert run("asr", data, "--part-size", 1, "--retry")["errors"] == 0
    assert (tmp_path / "out" / "parts" / "asr" / "part-00000.json").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--steps", "3"], "decoding.steps (2, now 3)"),
        (["--seed", "3"], "seed (0, now 3)"),
        (["--limit", "3"], "limit (None, now 3)"),
        (["--part-size", "3"], "part_size (128, now 3)"),
        (["--data", "other.jsonl"], "another data ("),
        (["--model", "other"], "another model ("),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_parts_of_another_evaluation_are_refused(
    run: Evaluate, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], difference: str
) -> None:
    run("asr")
    before = (tmp_path / "out" / "asr.jsonl").read_bytes()
    write_lines(workplace / "other.jsonl", [line(1)])
    if not (workplace / "other").exists():
        make_model(workplace, "other", seed=3)
    value = str(workplace / change[1]) if change[0] in ("--data", "--model") else change[1]
    argv = [*sys.argv, change[0], value]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UserError, match="choose another --out, or remove") as caught:
        evaluate.main()
    assert difference in str(caught.value)
    assert (tmp_path / "out" / "asr.jsonl").read_bytes() == before


def test_bad_folders_and_usage(run: Evaluate, workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        run("asr", model="none")
    with pytest.raises(UserError, match=r"mode: no such model folder; did you mean .*model\?"):
        run("asr", model="mode")
    bare = workplace / "bare"
    shutil.copytree(workplace / "model", bare, dirs_exist_ok=True)
    (bare / "token_layout.json").unlink()
    with pytest.raises(UserError, match=r"bare/token_layout\.json: no readable token layout"):
        run("asr", model="bare")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        run("asr", tmp_path / "none.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no item"):
        run("asr", tmp_path / "blank.jsonl")
    with pytest.raises(UserError, match="--judge robot: is no judge"):
        run("tts", None, "--judge", "robot")
    with pytest.raises(UserError, match="no template 'none'"):
        run("asr", None, "--template", "none")
    for words in (["asr", None, "--judge", "model"], ["audio_qa", None, "--text-only", "--judge", "model"]):
        with pytest.raises(SystemExit):
            run(*words)
    for words in (["asr", None, "--text-only"], ["asr", None, "--decoder-command", "x {codes} {wav}"], ["likelihood"]):
        with pytest.raises(SystemExit):
            run(*words)


@pytest.fixture(scope="module")
def mute(workplace: Path) -> str:
    return make_mute_model(workplace).name


def test_a_codec_without_decoder(run: Evaluate, mute: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="glm4voice: .*give --decoder-command") as caught:
        run("tts", model=mute)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    program = "import json, sys, soundfile; n = len(json.load(open(sys.argv[1])))\n"
    (tmp_path / "decode.py").write_text(f"{program}soundfile.write(sys.argv[2], [0.1] * (1920 * n), 24000)")
    decode = f"{shlex.join([sys.executable, str(tmp_path / 'decode.py')])} {{codes}} {{wav}}"
    assert run("tts", None, "--decoder-command", decode, "--limit", 2, model=mute)["decoder_command"] == decode
    spoken = [record for record in records(tmp_path, "tts") if record["wav"]]
    assert spoken
    for record in spoken:
        info = soundfile.info(tmp_path / "out" / record["wav"])
        assert (info.samplerate, info.frames) == (16000, 1280 * record["codes"])
    run("asr", model=mute)  # transcribing takes no decoder


def test_a_page_has_room_for_so_much_sound(run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttt_dist.evaluation import page

    run("asr")
    whole = (tmp_path / "out" / "asr.html").read_text().count("<audio")
    monkeypatch.setattr(page, "AUDIO_BYTES", 20_000)
    run("asr")
    assert 0 < (tmp_path / "out" / "asr.html").read_text().count("<audio") < whole == 4
