"""A chat of the served page: its turns come again in the next prompt as training wrote them, as many of them as fit."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from tests.served import SETTINGS, ask, call, make_model, running, wav
from ttt_dist.audio import load_codec
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Result
from ttt_dist.inference.sequence_state import prompt_spans
from ttt_dist.model.hf.folder import ModelFolder, load_folder
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.visibility import visible_end_of_spans
from ttt_dist.serving.app import App
from ttt_dist.serving.chat import MAX_TURNS, Turn, prompt_of
from ttt_dist.serving.decoding_thread import DecodingThread
from ttt_dist.serving.request_builder import Question, RequestBuilder
from ttt_dist.serving.server import trusted_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return load_folder(make_model(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="module")
def thread(folder: ModelFolder) -> Iterator[DecodingThread]:
    thread = DecodingThread(Decoder(folder, batch_size=8))
    yield thread
    thread.close()


def app_of(folder: ModelFolder, thread: DecodingThread) -> App:
    return App(RequestBuilder(folder, load_codec(folder.codec), SETTINGS, "tiny"), thread, trusted_names("127.0.0.1"))


@pytest.fixture(scope="module")
def port(folder: ModelFolder, thread: DecodingThread) -> Iterator[int]:
    with running(app_of(folder, thread)) as port:
        yield port


def chat_template(folder: ModelFolder) -> ChatTemplate:
    return ChatTemplate(folder.tokenizer, folder.layout, folder.template)


def generated(folder: ModelFolder, turns: list[dict], codes: list[np.ndarray], seed: int) -> tuple[int, Result]:
    """Length of the prompt and answer of a chat, without a server."""
    prompt = chat_template(folder).prompt("audio_chat", {"turns": turns}, codes)
    return len(prompt), Decoder(folder).generate([Request(prompt, seed)], SETTINGS)[0]


def test_the_next_prompt_holds_what_was_said_before(port: int, folder: ModelFolder) -> None:
    first = ask(port, task="chat", text="three one", seed=2)[1][-1]
    _, wanted = generated(folder, [{"role": "user", "text": "three one"}], [], 2)
    assert first["whole_text"] == wanted.text and wanted.text and len(wanted.codes)
    lines = ask(port, wav(), task="chat", text="", seed=3, after=first["answer"])[1]
    heard = load_codec(folder.codec).encode([load_wave()])[0]
    turns = [
        {"role": "user", "text": "three one"},
        {"role": "assistant", "text": wanted.text, "audio": "its own"},
        {"role": "user", "audio": "said"},
    ]
    size, second = generated(folder, turns, [wanted.codes, heard], 3)
    assert (lines[0]["prompt_tokens"], lines[0]["turns"], lines[-1]["whole_text"]) == (size, 3, second.text)
    assert lines[-1]["codes"] == len(second.codes)
    third = ask(port, task="chat", text="two", after=lines[-1]["answer"])[1][0]
    assert third["turns"] == 5 and third["prompt_tokens"] > size
    assert ask(port, task="chat", text="two")[1][0]["turns"] == 1  # a chat of its own


def load_wave() -> torch.Tensor:
    wave, _ = soundfile.read(io.BytesIO(wav()), dtype="float32")
    return torch.from_numpy(wave)


def test_the_attention_told_of_a_chat_is_what_decoding_sees(port: int, folder: ModelFolder) -> None:
    first = ask(port, wav(), task="chat", text="three one", seed=2)[1][-1]
    second = ask(port, task="chat", text="two", seed=2, after=first["answer"])[1][-1]
    told = json.loads(call(port, "GET", f"/answers/{second['answer']}/attention")[1])
    heard = load_codec(folder.codec).encode([load_wave()])[0]
    turns = [{"role": "user", "text": "three one", "audio": "said"}]
    codes = [heard]
    _, answer = generated(folder, turns, codes, 2)
    turns += [{"role": "assistant", "text": answer.text, "audio": "its own"}, {"role": "user", "text": "two"}]
    prompt = chat_template(folder).prompt("audio_chat", {"turns": turns}, [heard, answer.codes])
    heard_both_ways = folder.objective.prompt_audio == "bidirectional"
    seen = visible_end_of_spans(
        prompt_spans(prompt, folder.layout, heard_both_ways, SETTINGS.audio_mode == "diffusion")
    )
    assert told["prompt"] == len(prompt) and told["ends"][: len(prompt)] == seen.tolist()
    assert len(set(told["spans"][: len(prompt)])) > 2  # what was heard, and what was answered


def test_a_chat_that_is_not_kept_is_refused(port: int) -> None:
    status, (line,) = ask(port, task="chat", text="two", after="none")
    assert status == 404 and "start a new one" in line["error"]


def test_the_oldest_exchanges_are_left_out_with_a_word(folder: ModelFolder, thread: DecodingThread) -> None:
    question = len(chat_template(folder).prompt("audio_chat", {"turns": [{"role": "user", "text": "six"}]}, []))
    with running(app_of(replace(folder, max_length=2 * question), thread)) as port:
        first = ask(port, task="chat", text="six")[1]
        second = ask(port, task="chat", text="six", after=first[-1]["answer"])[1]
    assert "left_out" not in first[0]
    assert second[0] == {"prompt_tokens": question, "turns": 1, "left_out": 2}


@pytest.mark.parametrize("most_tokens", [0, 30, 60, 100, 10_000])
def test_the_latest_turns_that_fit_are_kept(folder: ModelFolder, most_tokens: int) -> None:
    template = chat_template(folder)
    turns = [Turn("user" if place % 2 == 0 else "assistant", "one two") for place in range(9)]

    def size(kept: int) -> int:
        entry = {"turns": [{"role": turn.role, "text": turn.text} for turn in turns[-kept:]]}
        return len(template.prompt("audio_chat", entry, []))

    ids, kept = prompt_of(template, "audio_chat", turns, None, most_tokens)
    assert list(kept) == turns[-len(kept) :] and kept[0].role == "user" and len(ids) == size(len(kept))
    assert len(ids) <= most_tokens or len(kept) == 1
    assert len(kept) == len(turns) or size(len(kept) + 2) > most_tokens


def test_a_long_chat_is_bounded_in_turns(folder: ModelFolder) -> None:
    turns = [Turn("user" if place % 2 == 0 else "assistant", "one") for place in range(MAX_TURNS + 10)]
    _, kept = prompt_of(chat_template(folder), "text_chat", turns, None, 10**9)
    assert len(kept) == MAX_TURNS and kept[0].role == "user"


def test_an_empty_answer_is_no_turn() -> None:
    turns = (Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three"))
    question = Question(Request(np.array([1])), SETTINGS, turns)
    nothing = np.zeros(0, np.int32)
    assert question.answered(" ", nothing) == turns[:-1]
    assert question.answered("four", nothing) == (*turns, Turn("assistant", "four"))
    assert question.answered("", np.array([3]))[-1].codes is not None
    assert Question(Request(np.array([1])), SETTINGS).answered("four", nothing) == ()  # no chat
