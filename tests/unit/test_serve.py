"""The served page over HTTP: what is answered and how, whom it refuses, and that nothing ends or blocks it."""

import base64
import io
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from werkzeug.test import encode_multipart

from tests.packages import need_package
from tests.served import SETTINGS, ask, call, make_model, running, served, wav
from tests.tiny_model import RATE
from ttt_dist.audio import load_codec
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Result
from ttt_dist.inference.model_runner import ModelRunner
from ttt_dist.model.hf.folder import ModelFolder, load_folder
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.visibility import visible
from ttt_dist.serving import decoding_thread
from ttt_dist.serving import request_builder as studio_module
from ttt_dist.serving.app import PAGE, App
from ttt_dist.serving.decoding_thread import DecodingThread
from ttt_dist.serving.refusals import HEADERS
from ttt_dist.serving.request_builder import RequestBuilder
from ttt_dist.serving.requests import MAX_UPLOAD
from ttt_dist.serving.server import is_loopback, listen, server_on, trusted_names, url_of
from ttt_dist.util.errors import UserError

ENDLESS = DecodeSettings(max_text=100_000, max_codes=100_000)  # greedy, the tiny model speaks for minutes
LARGE = 100 * 2**20
LARGE_HEAD = (
    "POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    f"Content-Length: {LARGE}\r\n\r\n"
).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def folder(model: Path) -> ModelFolder:
    return load_folder(model)


@pytest.fixture(scope="module")
def app(folder: ModelFolder) -> Iterator[App]:
    thread = DecodingThread(Decoder(folder, batch_size=8))
    yield App(RequestBuilder(folder, load_codec(folder.codec), SETTINGS, "tiny"), thread, trusted_names("127.0.0.1"))
    thread.close()


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    with running(app) as port:
        yield port


def alone(folder: ModelFolder, task: str, text: str, seed: int) -> Result:
    """What the decoder gives for a question, without a server."""
    template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
    settings = replace(SETTINGS, stop_at_last_span=task == "transcribe")
    if task == "transcribe":
        codec = load_codec(folder.codec)
        wave, _ = soundfile.read(io.BytesIO(wav()), dtype="float32")
        prompt = template.asr_prompt(codec.encode([torch.from_numpy(wave)])[0])
    elif task == "speak":
        prompt = template.tts_prompt(text)
    else:
        prompt = template.prompt("audio_chat", {"turns": [{"role": "user", "text": text}]}, [])
    return Decoder(folder).generate([Request(prompt, seed)], settings)[0]


def test_an_answer_comes_in_pieces_and_as_a_whole(port: int, folder: ModelFolder) -> None:
    wanted = alone(folder, "speak", "three one four", 3)
    assert wanted.text and len(wanted.spans) > 1
    status, lines = ask(port, task="speak", text="three one four", seed=3)
    assert status == 200
    assert "".join(line.get("text", "") for line in lines) == wanted.text == lines[-1]["whole_text"]
    spoken = [line for line in lines if "speech" in line]
    codec = load_codec(folder.codec)
    assert [line["length"] for line in spoken] == [len(span) / codec.code_rate for span in wanted.spans]
    for line, span in zip(spoken, wanted.spans, strict=True):
        samples = np.frombuffer(base64.b64decode(line["speech"]), "<i2") / 32767
        assert np.abs(samples - codec.decode(span).numpy()).max() < 1e-4
    status, data = call(port, "GET", f"/answers/{lines[-1]['answer']}/speech.wav")
    samples, rate = soundfile.read(io.BytesIO(data))
    assert (status, rate) == (200, RATE)
    assert np.abs(samples - codec.decode(wanted.codes).numpy()).max() < 1e-3


def test_a_codec_without_decoder_stays_silent(app: App, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.studio.codec, "no_decoder", "name a --decoder-command")
    lines = ask(port, task="chat", text="three one four", seed=2)[1]
    spoken = [line for line in lines if "speech" in line]
    assert spoken and all(line["speech"] is None and line["length"] > 0 for line in spoken)


def test_the_attention_told_is_the_mask_pair_by_pair(port: int, folder: ModelFolder) -> None:
    answer = ask(port, task="speak", text="three one four", seed=3)[1][-1]["answer"]
    status, data = call(port, "GET", f"/answers/{answer}/attention")
    told = json.loads(data)
    wanted = alone(folder, "speak", "three one four", 3)
    size = told["length"]
    assert (status, size - told["prompt"]) == (200, len(wanted.ids))
    seen = [[bool(visible(1, q, told["spans"][q], 1, k, told["spans"][k])) for k in range(size)] for q in range(size)]
    assert seen == [[k < end for k in range(size)] for end in told["ends"]]
    of_answer = np.array(told["spans"][told["prompt"] :])
    places = spans(np.array(wanted.ids), folder.layout)
    assert [np.flatnonzero(of_answer == number).tolist() for number in sorted(set(of_answer[of_answer > 0]))] == [
        list(range(*place)) for place in places
    ]
    assert len(places) > 1
    assert told["tokens"][told["prompt"] + np.flatnonzero(of_answer)[0]] == f"<|audio_{wanted.codes[0]}|>"


def test_the_attention_of_a_long_sequence_is_cut(app: App, folder: ModelFolder) -> None:
    ids = np.full(20_000, folder.layout.first_code, dtype=np.int32)
    told = app.studio.attention(ids[:5], ids)
    assert (told["length"], told["prompt"]) == (20_005, 5)
    assert [len(told[name]) for name in ("ends", "spans", "tokens")] == [studio_module.MAX_DRAWN] * 3


@pytest.mark.parametrize("mode", ["diffusion", "ar", "tidar"])
def test_the_attention_is_of_codes_as_they_were_written(mode: str, app: App, folder: ModelFolder) -> None:
    studio = RequestBuilder(folder, app.studio.codec, replace(SETTINGS, audio_mode=mode), "tiny")
    told = studio.attention(np.array([1]), np.array([folder.layout.first_code] * 3))
    assert told["ends"] == ([1, 4, 4, 4] if mode == "diffusion" else [1, 2, 3, 4])


def test_a_long_answer_tells_how_far_it_is(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_thread, "HEARTBEAT_S", 1e-4)
    lines = ask(port, task="chat", text="three one four", seed=2)[1]
    told = [line for line in lines if "tokens_so_far" in line]
    names = {"tokens_so_far": "tokens", "codes_so_far": "codes", "forwards_so_far": "forwards"}
    for name, whole in names.items():
        values = [line[name] for line in told]
        assert values and values == sorted(values) and values[0] >= 0 and values[-1] <= lines[-1][whole]


def test_the_figures_of_an_answer_add_up(port: int, folder: ModelFolder) -> None:
    lines = ask(port, task="chat", text="three one four", seed=2)[1]
    end, rate = lines[-1], load_codec(folder.codec).code_rate
    assert sum(line.get("length", 0) for line in lines) == pytest.approx(end["codes"] / rate)
    assert end["text_tokens"] + end["codes"] < end["tokens"]  # and the marks around spans and turn
    assert 0 < end["audio_forwards"] < end["forwards"]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    assert seconds == sorted(seconds) and seconds[-1] == end["seconds"]


def test_a_speaker_is_chosen_where_the_model_knows_some(app: App, folder: ModelFolder) -> None:
    known = RequestBuilder(replace(folder, speakers=["ann", "bob"]), app.studio.codec, SETTINGS, "tiny")
    assert (known.about["speakers"], app.studio.about["speakers"]) == (["ann", "bob"], [])
    template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
    for given, studio, chosen in (
        ("", known, "ann"),
        ("bob", known, "bob"),
        ("eve", known, "eve"),
        ("", app.studio, None),
    ):
        asked = studio.question({"task": "speak", "text": "six", "speaker": given}, None)
        assert (asked.speaker, asked.request.ids.tolist()) == (chosen, template.tts_prompt("six", chosen).tolist())


@pytest.mark.parametrize(
    ("name", "format_name", "codec"), [("said.m4a", "ipod", "aac"), ("said.webm", "webm", "libopus")]
)
def test_what_telephones_and_browsers_record_is_heard(
    port: int, monkeypatch: pytest.MonkeyPatch, name: str, format_name: str, codec: str
) -> None:
    data = compressed(format_name, codec)
    status, lines = ask(port, data, task="transcribe")
    assert status == 200 and "answer" in lines[-1]
    monkeypatch.setattr("ttt_dist.audio.ffmpeg.is_installed", lambda: False)
    status, (line,) = ask(port, data, task="transcribe")
    assert status == 400 and "pip install av" in line["error"]


def compressed(format_name: str, codec: str) -> bytes:
    """A second of noise, as FFmpeg writes it."""
    av = need_package("av", "containers")
    file, rate = io.BytesIO(), 48_000
    samples = (np.random.default_rng(0).standard_normal((1, rate)) * 0.1).astype(np.float32)
    with av.open(file, "w", format=format_name) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size or 960
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(piece))
    return file.getvalue()


def test_a_language_chooses_among_the_texts_of_a_template(app: App, folder: ModelFolder) -> None:
    templates = {"tts": [{"system": {"en": "one", "zh": "two"}}, {"user": "{text}"}, {"assistant": "{text+audio}"}]}
    both = replace(folder, template=replace(folder.template, templates=folder.template.templates | templates))
    studio = RequestBuilder(both, app.studio.codec, SETTINGS, "tiny")
    assert (studio.about["languages"], app.studio.about["languages"]) == (["en", "zh"], [])
    asked = [studio.question({"task": "speak", "text": "six", "lang": lang}, None) for lang in ("en", "zh")]
    prompts = [question.request.ids for question in asked]
    assert ["two" in folder.tokenizer.decode(ids[ids < folder.layout.num_text_tokens]) for ids in prompts] == [
        False,
        True,
    ]


@pytest.mark.slow
def test_twenty_at_once_each_get_what_they_would_alone(port: int, folder: ModelFolder) -> None:
    tasks = ["speak", "transcribe", "chat"]
    questions = [(tasks[number % 3], "one two three"[: 3 + number], number) for number in range(20)]
    gate = threading.Barrier(len(questions))

    def one(task: str, text: str, seed: int) -> tuple[int, list[dict]]:
        gate.wait()
        return ask(port, wav() if task == "transcribe" else None, task=task, text=text, seed=seed)

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(one, *zip(*questions, strict=True)))
    for question, (status, lines) in zip(questions, answers, strict=True):
        wanted = alone(folder, *question)
        end = lines[-1]
        assert status == 200, lines
        assert (end["whole_text"], end["finish"], end["forwards"]) == (wanted.text, wanted.finish, wanted.num_forwards)
        told = [line["length"] for line in lines if "speech" in line]
        assert told == [len(span) / 25 for span in wanted.spans if question[0] != "transcribe"]


@pytest.mark.parametrize(
    ("fields", "recording", "message"),
    [
        ({"task": "speak", "text": " "}, None, "the text is empty"),
        ({"task": "chat"}, None, "the text is empty; type one, or record one"),
        ({"task": "chat", "template": "text_chat"}, wav(), "lacks 'text'"),
        ({"task": "chat", "text": "one", "template": "asr"}, None, "template is 'asr'"),
        ({"task": "sing", "text": "one"}, None, "task is 'sing'"),
        ({"task": "transcribe"}, None, "there is no recording"),
        ({"task": "transcribe"}, b"", "there is no recording"),
        ({"task": "transcribe"}, b"RIFF\x00\x01broken", "said here.wav: cannot be read as audio"),
        ({"task": "transcribe"}, b"%PDF-1.7 a document", "said here.wav: cannot be read as audio"),
        ({"task": "transcribe"}, wav(0.0), "said here.wav: holds no audio"),
        ({"task": "transcribe"}, wav(601), "said here.wav: is longer than 600 s"),
        ({"task": "speak", "text": "one two " * 50_000}, None, "tokens, and the model takes"),
        ({"task": "speak", "text": "one", "steps": "0"}, None, "steps"),
        ({"task": "speak", "text": "one", "block": "many"}, None, "block is 'many'; give a whole number"),
        ({"task": "speak", "text": "one", "temperature": "nan"}, None, "temperature"),
        ({"task": "speak", "text": "one", "seed": "-1"}, None, "seed is -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_one_line(
    port: int, fields: dict[str, str], recording: bytes | None, message: str
) -> None:
    status, (answer,) = ask(port, recording, **fields)
    assert (status, list(answer)) == (400, ["error"])
    assert message in answer["error"] and "\n" not in answer["error"]


def test_a_large_upload_is_refused_before_it_is_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(LARGE_HEAD + b"--b\r\n" + bytes(2**20))
        assert b"413" in connection.makefile("rb").readline()
    status, answer = call(port, "POST", "/answers", bytes(LARGE), Content_Type="multipart/form-data; boundary=b")
    assert status == 413 and "larger than 20 MB" in json.loads(answer)["error"]
    assert ask(port, wav() + bytes(MAX_UPLOAD), task="transcribe")[0] == 413


def test_a_slow_client_is_told_why_its_upload_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(LARGE_HEAD)
        for _ in range(10):
            time.sleep(0.1)
            connection.sendall(bytes(2**18))
        answer = connection.makefile("rb").read()
    assert b" 413 " in answer and b"larger than 20 MB" in answer


@pytest.mark.parametrize(("limit", "pause"), [("LINGER_S", 0.05), ("LINGER_SILENCE_S", 1.0)])
def test_a_refused_client_that_does_not_end_is_cut_off(
    port: int, monkeypatch: pytest.MonkeyPatch, limit: str, pause: float
) -> None:
    monkeypatch.setattr(f"ttt_dist.serving.connections.{limit}", 0.2)

    def send_on(connection: socket.socket) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(pause)
            connection.sendall(bytes(2**10))

    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(LARGE_HEAD)
        with pytest.raises(ConnectionError):
            send_on(connection)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:80"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": "[::1"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "localhost"}, 405),  # the name is right, and nothing is posted to the page
        ({"Host": "LOCALHOST:1234"}, 405),
        ({"Host": "[::1]:7860"}, 405),
        ({"Host": "127.0.0.1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:2"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, 405),
    ],
)
def test_other_names_and_other_sites_are_refused(port: int, headers: dict[str, str], status: int) -> None:
    found, answer = call(port, "POST", "/model", b"", **headers)
    assert found == status
    assert len(json.loads(answer)["error"]) > 20


def test_the_page_fetches_nothing_from_elsewhere(port: int) -> None:
    for name in ["", *(name for name in PAGE if name != "page.html")]:
        status, data = call(port, "GET", f"/{name}")
        outside = re.findall(r"(?<!=')(?<!=\")https?://(?!www\.w3\.org/2000/svg)|@import|url\(", data.decode())
        assert (status, outside) == (200, [])
    assert "default-src 'self'" in HEADERS["Content-Security-Policy"]
    assert call(port, "GET", "/server.py")[0] == call(port, "GET", "/answers/none/speech.wav")[0] == 404


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_goes_away_is_forgotten(app: App, folder: ModelFolder) -> None:
    endless = App(RequestBuilder(folder, app.studio.codec, ENDLESS, "tiny"), app.thread, app.trusted)
    boundary, body = encode_multipart({"task": "speak", "text": "one"})
    head = f"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={boundary}"
    with listen("127.0.0.1", 0) as listening:
        server = server_on(listening, endless)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            with connection.makefile("rb") as answer:
                until(lambda: b"prompt_tokens" in answer.readline())
            until(lambda: not app.thread._session.is_idle)
        until(lambda: app.thread._session.is_idle and not app.thread._open)
        server.shutdown()


def test_too_many_wait_their_turn_elsewhere(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_thread, "MAX_OPEN", 0)
    status, (answer,) = ask(port, task="speak", text="one")
    assert status == 503 and "try again" in answer["error"]


def test_a_forward_that_fails_and_the_end_of_the_server_are_told(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(folder)
    template = ChatTemplate(folder.tokenizer, folder.layout, folder.template)
    request = Request(template.tts_prompt("one"))
    thread = DecodingThread(decoder)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "__call__", None)
        with pytest.raises(UserError, match="decoding failed"):
            list(thread.ask(request, SETTINGS))
    assert list(thread.ask(request, SETTINGS))[-1].result.text == decoder.generate([request], SETTINGS)[0].text
    listener = thread.ask(request, ENDLESS)
    thread.close()
    with pytest.raises(UserError, match="being stopped"):
        list(listener)


def test_only_loopback_unless_told_otherwise() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
    assert trusted_names("127.0.0.1") == {"127.0.0.1", "::1", "localhost"}
    assert {"Example.org".lower(), socket.gethostname().lower()} <= trusted_names("Example.org")
    assert url_of("::1", 80) == "http://[::1]:80/"
    for host, number in (("no such host", 0), ("192.0.2.1", 0)):
        with pytest.raises(UserError, match=f"--host {host}.*; "):
            listen(host, number)


@pytest.mark.slow
def test_the_command_listens_on_loopback_and_ends_on_a_signal(model: Path) -> None:
    with served(model) as (url, process):
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)[1])  # type: ignore[index]
        about = json.loads(call(port, "GET", "/model")[1])
        assert about["settings"]["block"] == SETTINGS.block
        assert about["fields"].keys() == about["settings"].keys()
        assert about["fields"]["code_temperature"] == {
            "label": "Code temperature", "title": "Of audio codes; 0 takes the likeliest.", "min": 0, "step": 0.05
        }  # fmt: skip
        with pytest.raises(UserError, match=rf"--port {port}: .* in use; choose another --port"):
            listen("127.0.0.1", port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout is not None and process.stdout.read() == "stopped\n"
