"""Entrances of training and after it: shards, checkpoints, model folders, tokenizers, states, logs, data of evaluation, requests."""

import argparse
import io
import json
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from werkzeug.test import run_wsgi_app

from benchmarks.fuzz.corpora import GOLDEN, WORDS, sound
from benchmarks.fuzz.entrance import Counted, Entrance, drain, num_lines
from benchmarks.fuzz.settings import copied, resealed
from ttt_dist.audio import load_codec
from ttt_dist.checkpoint.inspection import inspect_folder
from ttt_dist.checkpoint.manager import latest, progress_of
from ttt_dist.checkpoint.torch_io import read_state
from ttt_dist.config.decode import folder_settings
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.evaluation.items import Item, read_items
from ttt_dist.evaluation.tasks.registry import find_task
from ttt_dist.inference.decoder import Request
from ttt_dist.model.hf.folder import load_folder
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.serving.app import App
from ttt_dist.serving.decoding_thread import BusyError, DecodingThread
from ttt_dist.serving.request_builder import RequestBuilder
from ttt_dist.telemetry.events import read_events, with_silent_ends
from ttt_dist.telemetry.metrics import open_metrics
from ttt_dist.tools import report

STEP = "checkpoints/step-00000300"
SHARD = {"valid.bin": "bytes", "valid.idx": "bytes", "valid.json": "json"}


def read_shard(folder: Path) -> None:
    """Every document, and what `data_prep inspect` looks at."""
    verify(folder / "valid")
    reader = ShardReader(folder / "valid")
    reader.documents(np.arange(len(reader)))


def read_model(folder: Path) -> None:
    load_folder(folder / "export")


def read_torch(folder: Path) -> None:
    read_state(folder / "a.pt")


def read_run(folder: Path) -> None:
    checkpoint = latest(folder / "run" / "checkpoints")
    if checkpoint is not None:
        progress_of(checkpoint)
    inspect_folder(folder / "run")


def read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.decode(tokenizer.encode("one two <|im_start|> 三"))


def make_tokenizer_json(folder: Path) -> None:
    """A small BPE tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 5, trainer)
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "model_max_length": 512})
    )


def make_state(folder: Path) -> None:
    import torch

    state = {"step": 3, "weights": {"a": torch.arange(8.0), "b": torch.ones(2, 2)}, "name": "x"}
    torch.save(state, folder / "a.pt")


def make_logs(folder: Path) -> None:
    """The records of a run, as the report reads them."""
    steps = [
        {
            "step": step,
            "loss": 3.0 / step,
            "grad_norm": 1.0,
            "lr": 1e-3,
            "useful_tokens_per_s": 100.0,
            "data_share": 0.1,
            "step_s": 0.5,
            "data_s": 0.1,
            "ar_loss": 1.0,
            "nar_loss": 2.0,
            "nar_loss_p0.0-0.2": 1.5,
            "nar_tokens_p0.0-0.2": 8.0,
        }
        for step in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    events = [
        {"time": f"2026-11-28T00:00:0{n}.000+00:00", "step": 2 * n, "event": event}
        for n, event in enumerate(("start", "checkpoint", "end"))
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "environment.json").write_text(json.dumps({"started": "2026", "world_size": 2, "hardware": {"cores": 2}}))


def read_logs(folder: Path) -> None:
    """As a report reads them, without its pictures, which take a second."""
    report.subtitle(folder)
    next(report.sections(argparse.Namespace(run=folder, data=None, audio_root=None)))
    with_silent_ends(read_events(folder))


def draw_logs(folder: Path) -> None:
    """The whole report."""
    drain(report.sections(argparse.Namespace(run=folder, data=None, audio_root=None)))


def continue_log(folder: Path) -> None:
    """As a run does that goes on from step 4."""
    log = open_metrics(folder, 4, {}, wandb="off", wandb_project="", tensorboard=False)
    log.log(5, {"loss": 1.0})
    log.close()


def make_data(kind: str, folder: Path) -> None:
    """A data file of an evaluation, in one of its forms."""
    items = [
        {
            "id": f"i{n}",
            "audio": f"{n}.wav",
            "text": word,
            "captions": [word, "a"],
            "label": word,
            "question": word,
            "answers": [word],
        }
        for n, word in enumerate(WORDS)
    ]
    if kind == "jsonl":
        content = "".join(json.dumps(item) + "\n" for item in items)
    elif kind == "json":
        content = json.dumps({"data": items})
    else:
        columns = ("id", "audio", "text", "label", "question", "answers")
        rows = [columns, *([str(item[name] if name != "answers" else "a; b") for name in columns] for item in items)]
        content = "".join(("," if kind == "csv" else "\t").join(row) + "\n" for row in rows)
    (folder / f"a.{kind}").write_text(content)


def read_data(kind: str, folder: Path) -> Counted:
    path = folder / f"a.{kind}"
    counted = Counted(0, 0, 0)
    for task in ("asr", "audio_qa", "classification", "speech_chat"):
        lines = read_items(path, find_task(task).prepare)
        given = sum(isinstance(line, Item) for line in lines)
        there = {"json": 0, "jsonl": num_lines(path.read_bytes())}.get(kind, num_lines(path.read_bytes()) - 1)
        counted = Counted(given, len(lines) - given, there, each=kind != "csv")
        if counted.is_lossy:
            break
    return counted


class _Full:
    """A decoding thread that takes nothing: requests are read, and nothing is decoded."""

    def ask(self, request: Request, settings: Any) -> Any:
        raise BusyError("is full")


class _Socket:
    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 80


@cache
def page() -> App:
    folder = load_folder(GOLDEN / "export")
    return App(
        RequestBuilder(folder, load_codec(folder.codec), folder_settings(GOLDEN / "export"), "golden"),
        cast(DecodingThread, _Full()),
        ["127.0.0.1"],
    )


def make_request(folder: Path) -> None:
    """A form that the page sends, headers and body."""
    parts = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in {
            "task": "transcribe",
            "text": "hello",
            "seed": "3",
            "temperature": "0.5",
            "max_text": "8",
        }.items()
    ).encode()
    upload = (
        b'--b\r\nContent-Disposition: form-data; name="recording"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    )
    body = parts + upload + sound("wav", 0.2) + b"\r\n--b--\r\n"
    head = "POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    (folder / "post").write_bytes(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    (folder / "get").write_bytes(
        b"GET /answers/abc/speech.wav?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=0-3\r\n\r\n"
    )


def send(folder: Path) -> None:
    """Both requests to the application; raises RuntimeError where the answer blames the server."""
    for name in ("post", "get"):
        environ = environ_of((folder / name).read_bytes())
        if environ is None:
            continue
        _, status, _ = run_wsgi_app(page(), environ)
        if status.startswith("500"):
            raise RuntimeError(f"status {status}")


def environ_of(content: bytes) -> dict[str, Any] | None:
    """As the server makes it of the request's lines; None where it refuses these."""
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        return None
    path, _, query = words[1].partition("?")
    headers = dict(line.split(":", 1) for line in lines if ":" in line)
    environ = {f"HTTP_{name.strip().upper().replace('-', '_')}": value.strip() for name, value in headers.items()}
    known = {
        name: environ.pop(f"HTTP_{name}") for name in ("CONTENT_TYPE", "CONTENT_LENGTH") if f"HTTP_{name}" in environ
    }
    return {
        **environ,
        **known,
        "REQUEST_METHOD": words[0],
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.version": (1, 0),
        "werkzeug.socket": _Socket(),
    }


LOGS = {"metrics.jsonl": "jsonl", "events.jsonl": "jsonl", "environment.json": "json"}
MODEL = {"config.json": "json", "token_layout.json": "json", "template.json": "json", "model.safetensors": "bytes"}
TOKENIZER = {"tokenizer/tokenizer.json": "json", "tokenizer/tokenizer_config.json": "json"}
CHECKPOINT = {
    f"run/{STEP}/run.json": "json",
    f"run/{STEP}/manifest.json": "json",
    "run/checkpoints/latest": "text",
    "run/config.yaml": "text",
}
DATA = {"jsonl": "jsonl", "json": "json", "csv": "text", "tsv": "text"}
make_shard = copied(*(f"shards/{name}" for name in SHARD))
TRAINED = (
    Entrance(name="shard", make=make_shard, files=SHARD, read=read_shard),
    Entrance(name="shard, resealed", make=make_shard, files={"valid.json": "tree"}, read=read_shard, seal=resealed),
    Entrance(name="checkpoint", make=copied("run"), files=CHECKPOINT, read=read_run),
    Entrance(
        name="model folder",
        make=copied("export"),
        files={f"export/{name}": kind for name, kind in MODEL.items()},
        read=read_model,
    ),
    Entrance(
        name="sentencepiece",
        make=copied("export/tokenizer"),
        files={"tokenizer/tokenizer.model": "bytes"},
        read=read_tokenizer,
    ),
    Entrance(name="tokenizer.json", make=make_tokenizer_json, files=TOKENIZER, read=read_tokenizer),
    Entrance(name="state", make=make_state, files={"a.pt": "bytes"}, read=read_torch),
    Entrance(name="logs", make=make_logs, files=LOGS, read=read_logs),
    Entrance(name="logs, drawn", make=make_logs, files=LOGS, read=draw_logs),
    Entrance(
        name="log, continued", make=make_logs, files={"metrics.jsonl": "jsonl"}, read=continue_log, is_written=True
    ),
    *(
        Entrance(
            name=f"evaluation data.{kind}",
            make=partial(make_data, kind),
            files={f"a.{kind}": how},
            read=partial(read_data, kind),
        )
        for kind, how in DATA.items()
    ),
    Entrance(name="request", make=make_request, files={"post": "bytes", "get": "text"}, read=send),
    Entrance(name="request, head", make=make_request, files={"post": "text"}, read=send),
)
