"""What benchmarks' own judges read, and what the tasks on sounds and answers count of their records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Normalisers, wavs
from ttt_dist.evaluation.submission_formats import alpaca_eval, voicebench_and_uro_bench
from ttt_dist.evaluation.summary import table
from ttt_dist.evaluation.tasks.answers import score_answers
from ttt_dist.evaluation.tasks.captioning_classification import score_captions, score_labels
from ttt_dist.evaluation.tasks.chats import Chat
from ttt_dist.inference.detokenizer import Result
from ttt_dist.util.errors import UserError

ENGLISH = Normalisers("basic")


def args_of(out: Path, task: str) -> EvalArgs:
    return EvalArgs(
        task=task,
        model=Path("runs/export"),
        data=Path("data/questions.jsonl"),
        out=out,
        template="audio_chat",
        decoding=DecodeSettings(),
    )


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def chat(number: int, answers: list[str], **given: Any) -> dict[str, Any]:
    told = [
        {"question": f"q{number}.{i}", "text": text, "wav": f"wav/{number}-{i}.wav"} for i, text in enumerate(answers)
    ]
    return {"id": f"a/{number}", "number": number, "answers": told, "given": given}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for number in range(1, 4):
        for turn in range(2):
            (tmp_path / "wav" / f"{number}-{turn}.wav").write_bytes(f"{number}-{turn}".encode())
    return tmp_path


def test_questions_without_answers_become_lists_for_alpaca_eval(out: Path) -> None:
    records = [
        {"question": "why?", "answers": [], "text": "so", "heard": "sew", "dataset": "helpful"},
        {"question": "how?", "answers": [], "text": "thus"},
        {"question": "who?", "answers": ["ada"], "text": "ada", "heard": "ada"},
    ]
    paths = alpaca_eval(args_of(out, "audio_qa"), records)
    assert [path.name for path in paths] == ["alpaca_eval_text.json", "alpaca_eval_speech.json"]
    about = {"generator": "runs/export"}
    assert json.loads(paths[0].read_text()) == [
        {"dataset": "helpful", "instruction": "why?", "output": "so"} | about,
        {"dataset": "questions", "instruction": "how?", "output": "thus"} | about,
    ]
    assert [row["output"] for row in json.loads(paths[1].read_text())] == ["sew"]


def test_single_questions_keep_the_number_of_their_item(out: Path) -> None:
    """Item 2 could not be used: the third is number 0002 still. The fourth got no answer."""
    records = [chat(1, ["one"], prompt="say one"), chat(3, ["three"], target_text=["3", "three"]), chat(4, [])]
    voicebench_and_uro_bench(args_of(out, "speech_chat"), records)
    folder = out / "uro_bench"
    assert lines(folder / "pred_text.jsonl") == [{"0000": "one"}, {"0002": "three"}, {"0003": ""}]
    assert lines(folder / "gt_text.jsonl") == [{"0000": "say one"}, {"0002": "3 / three"}, {"0003": ""}]
    assert sorted(path.name for path in (folder / "audio").iterdir()) == ["0000.wav", "0002.wav"]
    assert (folder / "audio" / "0002.wav").read_bytes() == b"3-0"
    assert lines(out / "voicebench.jsonl") == [
        {"prompt": "say one", "response": "one"},
        {"target_text": ["3", "three"], "prompt": "q3.0", "response": "three"},
    ]


def test_dialogues_go_into_one_file(out: Path) -> None:
    rounds = [{"source_text": "one?"}, {"source_text": "two?"}, {"source_text": "three?"}]
    voicebench_and_uro_bench(args_of(out, "speech_chat"), [chat(2, ["one", "two"], id="x", dialogue=rounds)])
    (told,) = lines(out / "uro_bench" / "output_with_text.jsonl")
    assert (told["id"], told["num_round"]) == ("x", 3)
    assert [turn["output_text"] for turn in told["dialogue"]] == ["one", "two", ""]
    assert [turn["round"] for turn in told["dialogue"]] == [0, 1, 2]
    sounds = out / "uro_bench" / "a_2"
    assert sorted(path.name for path in sounds.iterdir()) == ["round_0_output.wav", "round_1_output.wav"]
    assert not (out / "voicebench.jsonl").exists()


def test_a_chat_goes_on_after_each_answer_and_ends_at_none() -> None:
    turns = [
        {"role": "system", "text": "be kind"},
        {"role": "user", "audio": "a.wav"},
        {"role": "assistant", "text": "as the data has it"},
        {"role": "user", "text": "and then?"},
        {"role": "user", "text": "and then?"},
    ]
    talk = Chat(Item("x", "f:1", {"turns": turns, "id": "x"}, 4), [np.array([3, 4])])
    assert [turn["role"] for turn in talk.turns] == ["system", "user"] and talk.asks
    assert talk.turns[1]["audio"] == "given" and talk.codes[0].tolist() == [3, 4]
    none = np.zeros(0, np.int32)
    said = Result(
        ids=none, text=" yes ", text_ids=none, spans=[np.array([7])], finish="end", num_forwards=1, num_audio_forwards=1
    )
    talk.tell(said, "x.wav")
    assert talk.asks and talk.turns[2] == {"role": "assistant", "text": "yes", "audio": "given"}
    assert [codes.tolist() for codes in talk.codes] == [[3, 4], [7]]
    talk.tell(replace(said, text=" ", spans=[]), None)
    assert not talk.asks, "the last question is asked although the one before it got no answer"
    record = talk.record()
    assert [answer["question"] for answer in record["answers"]] == ["", "and then?"]
    assert record["number"] == 4 and record["given"] == {"id": "x"}
    assert wavs(record) == ["x.wav"]


def test_answers_are_right_where_they_hold_an_accepted_one() -> None:
    records = [
        {
            "id": "a",
            "answers": ["four"],
            "text": "It is four.",
            "heard": "it is for",
            "heard_by": {"own": "", "w": "four"},
        },
        {"id": "b", "answers": ["five", "5"], "text": "Six", "heard": "Five!", "heard_by": {"own": "", "w": "nine"}},
        {"id": "c", "answers": [], "text": "whatever", "heard": "whatever"},
    ]
    scored = score_answers(records, ENGLISH)
    assert {name: figure.value for name, figure in scored.figures.items()} == {
        "text_accuracy": 0.5, "speech_accuracy": 0.5, "speech_w_accuracy": 0.5,
    }  # fmt: skip
    assert [record.get("text_is_right") for record in scored.records] == [True, False, None]
    assert [record.get("speech_w_is_right") for record in scored.records] == [True, False, None]
    assert scored.details == {"without_answers": 1}


def test_labels_outside_the_data_are_wrong() -> None:
    pairs = [("rain", "Rain."), ("rain", "it barks"), ("dog", "dog"), ("dog", "rain")]
    records = [{"id": str(i), "label": label, "hypothesis": said} for i, (label, said) in enumerate(pairs)]
    scored = score_labels(records, ENGLISH)
    assert scored.figures["accuracy"].value == 0.5
    # rain: 1 right of 2 given and 2 wanted, 1/2; dog: 1 right of 1 given and 2 wanted, 2/3
    assert scored.figures["macro_f1"].value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [record["given"] for record in scored.records] == ["rain", None, "dog", "rain"]
    assert scored.details["outside_labels"] == 1
    assert score_labels([], ENGLISH).figures["macro_f1"].value is None


def test_captions_that_are_a_reference_have_full_marks() -> None:
    texts = ["a dog barks at the gate", "rain falls on a tin roof", "two birds sing in a tree"]
    records = [{"id": str(i), "captions": [text, "another one"], "hypothesis": text} for i, text in enumerate(texts)]
    figures = score_captions(records, ENGLISH).figures
    assert figures["bleu"].value == pytest.approx(100)
    assert figures["rouge_l"].value == 1.0
    wrong = score_captions([record | {"hypothesis": "wind"} for record in records], ENGLISH).figures
    assert wrong["bleu"].value == 0.0 and wrong["rouge_l"].value == 0.0 and wrong["cider_d"].value == 0.0
    assert score_captions([], ENGLISH).figures["bleu"].value is None


def test_notes_name_the_line_of_what_was_refused() -> None:
    amounts: list[float] = []
    notes = ItemErrors(amounts.append)
    items = [Item(str(i), f"f:{i}", {}) for i in range(3)]

    def make(item: Item, value: int) -> int:
        if value == 1:
            raise UserError("too long")
        notes.done(0.5)()
        return 10 * value

    assert notes.each(zip(items, range(3), strict=True), make) == [(items[0], 0), (items[2], 20)]
    assert notes.problems == ["f:1: too long"]
    assert notes.num_done == sum(amounts) == 1.0


def test_a_cell_cannot_break_its_table() -> None:
    assert table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x/y | 1 |"
