"""A tiny model that writes digits and speaks noise, the served page of it, and how tests ask it."""

import http.client
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from tests.tiny_model import RATE, export_tiny, make_parts, noise
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.flags import as_flags
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.serving.app import App
from ttt_dist.serving.server import listen, server_on

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SETTINGS = DecodeSettings(block=8, steps=4, temperature=1.0, code_temperature=1.0, span_limit=24, max_text=12)


def make_model(folder: Path) -> Path:
    """Export random weights whose head likes words, starts of audio and ends of turns; the model's folder."""
    make_parts(folder, noise(seconds=1, count=4), " ".join(WORDS), vocab_size=320)
    tokenizer = load_tokenizer(folder / "tokenizer")
    liked = [token for token in range(tokenizer.size) if tokenizer.decode([token]).strip() in WORDS]

    def incline(model: Transformer, layout: TokenLayout) -> None:
        model.embed.weight += 1.0  # all states share a direction, in which the head says what is likely
        model.head.weight[: layout.num_text_tokens] -= 0.3
        model.head.weight[liked] += 0.7
        model.head.weight[layout.begin_of_audio] += 0.45
        model.head.weight[layout.im_end] += 0.44
        model.head.weight[layout.end_of_audio_new] += 0.09

    return export_tiny(folder, "model", incline, num_layers=2, init_std=0.2)


@contextmanager
def served(model: Path, settings: DecodeSettings = SETTINGS) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run the command on a free port; its address, and the process."""
    command = [sys.executable, "ttt_dist/serve.py", "--model", str(model), "--port", "0", *as_flags(settings)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            found = re.match(r"open (http://\S+/)", process.stdout.readline())
            assert found, process.stderr.read()
            yield found[1], process
        finally:
            process.kill()


@contextmanager
def running(app: App) -> Iterator[int]:
    """Serve an application in this process; its port."""
    with listen("127.0.0.1", 0) as listening:
        server = server_on(listening, app)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.port
        server.shutdown()


def call(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer to a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read()


def ask(port: int, recording: bytes | None = None, **fields: object) -> tuple[int, list[dict]]:
    """Status, and the lines of the answer."""
    values: dict[str, Any] = {name: str(value) for name, value in fields.items()}
    if recording is not None:
        values["recording"] = FileStorage(io.BytesIO(recording), "said here.wav")
    boundary, body = encode_multipart(values)
    kind = f"multipart/form-data; boundary={boundary}"
    status, answer = call(port, "POST", "/answers", body, Content_Type=kind)
    return status, [json.loads(line) for line in answer.splitlines() if line]


def wav(seconds: float = 0.5, rate: int = RATE) -> bytes:
    """Noise, as a file."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).standard_normal(round(seconds * rate)) * 0.1, rate, format="WAV")
    return file.getvalue()
