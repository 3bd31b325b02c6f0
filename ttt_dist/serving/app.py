"""The web application: which address answers what, whom it answers at all, and how errors are told.

    GET  /, /page.css, /page.js, ...       the page
    GET  /model                            what the model is and offers, JSON
    POST /answers                          a question (a form); its answer as it is written, a JSON object a line
    GET  /answers/ID/speech.wav            the whole speech of an answer
    GET  /answers/ID/attention             who sees whom in its sequence, JSON

Errors are {"error": LINE} with a status that says whose fault it is.
"""

import base64
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from werkzeug.exceptions import ClientDisconnected, HTTPException, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from ttt_dist.inference.decoder import Progress
from ttt_dist.inference.detokenizer import Event, Finished, Result, SpanDone, TextPiece
from ttt_dist.serving.chat import Turn
from ttt_dist.serving.decoding_thread import BusyError, DecodingThread, Listener
from ttt_dist.serving.refusals import HEADERS, refusal
from ttt_dist.serving.request_builder import Question, Recording, RequestBuilder
from ttt_dist.serving.requests import MAX_UPLOAD, LimitedRequest, require_form, require_readable, require_trusted
from ttt_dist.util.errors import UserError

MAX_KEPT = 200  # answers whose speech and picture can still be asked for
MAX_RECORDINGS = 2  # decoded at once: one may take hundreds of megabytes
SCRIPTS = tuple(
    f"{name}.js"
    for name in ("page", "asking", "answers", "attention", "playing", "microphone", "recording", "sound", "spectrogram")
)
PAGE = {"page.html": "text/html", "page.css": "text/css"} | dict.fromkeys(SCRIPTS, "text/javascript")
ROUTES = Map(
    [
        Rule("/", endpoint="page", methods=["GET"]),
        Rule("/<name>", endpoint="page", methods=["GET"]),
        Rule("/model", endpoint="model", methods=["GET"]),
        Rule("/answers", endpoint="ask", methods=["POST"]),
        Rule("/answers/<key>/speech.wav", endpoint="speech", methods=["GET"]),
        Rule("/answers/<key>/attention", endpoint="attention", methods=["GET"]),
    ],
    merge_slashes=False,
)


class Kept(NamedTuple):
    """What is kept of an answer."""

    prompt: np.ndarray
    result: Result
    turns: tuple[Turn, ...]


class App:
    """The WSGI application. `trusted` are the names and addresses that the server may be called by, in lower case."""

    def __init__(self, studio: RequestBuilder, thread: DecodingThread, trusted: Iterable[str]) -> None:
        self.studio = studio
        self.thread = thread
        self.trusted = frozenset(trusted)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()  # of `_kept`
        self._recordings = threading.BoundedSemaphore(MAX_RECORDINGS)
        self._files = {name: files(__package__).joinpath("page", name).read_bytes() for name in PAGE}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            response = self._respond(LimitedRequest(environ))
        except ClientDisconnected:
            response = refusal(400, "the request ends before its body does, or its chunks are malformed; send it whole")
        except HTTPException as error:
            response = refusal(error.code or 500, error.description or error.name)
        except BusyError as error:
            response = refusal(503, str(error))
        except UserError as error:
            response = refusal(400, str(error))
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        require_trusted(request, self._names(request))
        require_readable(request)
        endpoint, values = ROUTES.bind_to_environ(request.environ).match()
        handler: Callable[..., Response] = getattr(self, f"_{endpoint}")
        return handler(request, **values)

    def _names(self, request: Request) -> frozenset[str]:
        """What the server may be called in this request: its names, and the address that the connection came to."""
        return self.trusted | {request.environ["werkzeug.socket"].getsockname()[0]}

    def _page(self, _: Request, name: str = "page.html") -> Response:
        if name not in PAGE:
            raise NotFound(f"there is nothing at /{name[:40]}; open the page at /")
        return Response(self._files[name], mimetype=PAGE[name])

    def _model(self, _: Request) -> Response:
        return _json(self.studio.about | {"max_upload": MAX_UPLOAD})

    def _ask(self, request: Request) -> Response:
        start = time.monotonic()
        require_form(request)
        asked = self._question(request)
        listener = self.thread.ask(asked.request, asked.settings)
        lines = self._lines(asked, listener, start)
        response = Response(lines, mimetype="application/x-ndjson")
        response.call_on_close(listener.close)
        return response

    def _question(self, request: Request) -> Question:
        upload, key = request.files.get("recording"), request.form.get("after")
        before = self._chat(key) if key else ()
        if upload is None:
            return self.studio.question(request.form, None, before)
        with closing(upload), self._recordings:
            data = upload.read()
            recording = Recording(data, _shown(upload.filename or "recording")) if data else None
            return self.studio.question(request.form, recording, before)

    def _lines(self, asked: Question, listener: Listener, start: float) -> Iterator[bytes]:
        """What happens to a question, a JSON object a line; where nothing does, how far it is, or an empty line: so it shows
        whether anybody is listening."""
        told = {"speaker": asked.speaker, "turns": len(asked.turns), "left_out": asked.left_out}
        yield _line({"prompt_tokens": len(asked.request.ids), **{name: it for name, it in told.items() if it}})
        transcribes = asked.settings.stop_at_last_span
        try:
            for event in listener:
                if event is None:
                    yield _line(_progress(listener.progress)) if listener.progress else b"\n"
                elif not (transcribes and isinstance(event, SpanDone)):  # a transcript may pass through speech
                    yield _line(self._told(event, asked) | {"seconds": time.monotonic() - start})
        except UserError as error:
            yield _line({"error": str(error)})

    def _told(self, event: Event, asked: Question) -> dict[str, Any]:
        match event:
            case TextPiece(text):
                return {"text": text}
            case SpanDone(codes):
                return {"speech": self._sound(codes), "length": len(codes) / self.studio.codec.code_rate}
            case Finished(result):
                return self._ended(Kept(asked.request.ids, result, asked.answered(result.text, result.codes)))

    def _sound(self, codes: np.ndarray) -> str | None:
        if self.studio.codec.no_decoder:
            return None
        return base64.b64encode(self.studio.samples(codes).tobytes()).decode()

    def _ended(self, kept: Kept) -> dict[str, Any]:
        key = secrets.token_urlsafe(9)
        with self._lock:
            self._kept[key] = kept
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        result = kept.result
        return {
            "answer": key,
            "whole_text": result.text,
            "finish": result.finish,
            "codes": len(result.codes),
            "text_tokens": len(result.text_ids),
            "tokens": len(result.ids),
            "forwards": result.num_forwards,
            "audio_forwards": result.num_audio_forwards,
        }

    def _speech(self, _: Request, key: str) -> Response:
        return Response(self.studio.wav(self._answer(key).result.codes), mimetype="audio/wav")

    def _attention(self, _: Request, key: str) -> Response:
        kept = self._answer(key)
        return _json(self.studio.attention(kept.prompt, kept.result.ids))

    def _chat(self, key: str) -> tuple[Turn, ...]:
        with self._lock:
            if key not in self._kept:
                raise NotFound(
                    f"this chat is not kept any more (those of the last {MAX_KEPT} answers are); start a new one"
                )
            return self._kept[key].turns

    def _answer(self, key: str) -> Kept:
        with self._lock:
            if key not in self._kept:
                raise NotFound(f"this answer is not kept any more (the last {MAX_KEPT} are); ask again")
            return self._kept[key]


def _shown(name: str) -> str:
    """The end of a file's name, without what a terminal or a page would obey."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())[-80:]


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "tokens_so_far": progress.num_tokens,
        "codes_so_far": progress.num_codes,
        "forwards_so_far": progress.num_forwards,
    }


def _json(values: dict[str, Any]) -> Response:
    return Response(json.dumps(values), mimetype="application/json")


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
