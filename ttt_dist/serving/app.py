"""The web application: which address answers what, whom it answers at all, and how errors are told.

    GET  /, /page.css, /page.js, ...       the page
    GET  /model                            what the model is and offers, JSON
    POST /answers                          a question (a form); its answer as it is written, a JSON object a line
    GET  /answers/ID/speech.wav            the whole speech of an answer
    GET  /answers/ID/attention.png         who sees whom in its sequence

Errors are {"error": LINE} with a status that says whose fault it is.
"""

import base64
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from ttt_dist.inference import decoder
from ttt_dist.inference.detokenizer import Event, Finished, Result, SpanDone, TextPiece
from ttt_dist.serving.decoding_thread import BusyError, DecodingThread, Listener
from ttt_dist.serving.request_builder import Recording, RequestBuilder
from ttt_dist.util.errors import UserError

MAX_UPLOAD = 20 * 2**20
MAX_KEPT = 200  # answers whose speech and picture can still be asked for
SCRIPTS = ("page.js", "playing.js", "recording.js")
PAGE = {"page.html": "text/html", "page.css": "text/css"} | dict.fromkeys(SCRIPTS, "text/javascript")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ROUTES = Map(
    [
        Rule("/", endpoint="page", methods=["GET"]),
        Rule("/<name>", endpoint="page", methods=["GET"]),
        Rule("/model", endpoint="model", methods=["GET"]),
        Rule("/answers", endpoint="ask", methods=["POST"]),
        Rule("/answers/<key>/speech.wav", endpoint="speech", methods=["GET"]),
        Rule("/answers/<key>/attention.png", endpoint="attention", methods=["GET"]),
    ],
    merge_slashes=False,
)


class LimitedRequest(Request):
    """A request whose body is not read beyond the limit."""

    max_content_length = MAX_UPLOAD


class Kept(NamedTuple):
    """What is kept of an answer."""

    prompt: np.ndarray
    result: Result


class App:
    """The WSGI application. `trusted` are the names and addresses that the server may be called by, in lower case."""

    def __init__(self, studio: RequestBuilder, thread: DecodingThread, trusted: Iterable[str]) -> None:
        self.studio = studio
        self.thread = thread
        self.trusted = frozenset(trusted)
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()  # of `_kept`
        self._files = {name: files(__package__).joinpath("page", name).read_bytes() for name in PAGE}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            response = self._respond(LimitedRequest(environ))
        except RequestEntityTooLarge:
            response = _error(
                413, f"the upload is larger than {MAX_UPLOAD // 2**20} MB, or its text than 0.5 MB; send less"
            )
        except HTTPException as error:
            response = _error(error.code or 500, error.description or error.name)
        except BusyError as error:
            response = _error(503, str(error))
        except UserError as error:
            response = _error(400, str(error))
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        self._require_trusted(request)
        endpoint, values = ROUTES.bind_to_environ(request.environ).match()
        handler: Callable[..., Response] = getattr(self, f"_{endpoint}")
        return handler(request, **values)

    def _require_trusted(self, request: Request) -> None:
        """Refuse other names of this address (a site that has its name point here would read along), and other sites' forms."""
        host = request.environ.get("HTTP_HOST", "")
        here = {request.environ["werkzeug.socket"].getsockname()[0]} | self.trusted
        if _hostname(host) not in here:
            raise BadRequest(f"the server is not called {host[:80]!r}; open it by the address that it printed")
        origin = request.headers.get("Origin")
        if origin is not None and request.method != "GET" and urlsplit(origin).netloc != host:
            raise Forbidden(f"a page of {origin[:80]!r} may not ask this server; open its own page")

    def _page(self, _: Request, name: str = "page.html") -> Response:
        if name not in PAGE:
            raise NotFound(f"there is nothing at /{name[:40]}; open the page at /")
        return Response(self._files[name], mimetype=PAGE[name])

    def _model(self, _: Request) -> Response:
        return _json(self.studio.about | {"max_upload": MAX_UPLOAD})

    def _ask(self, request: Request) -> Response:
        start = time.monotonic()
        upload = request.files.get("recording")
        recording = None
        if upload is not None and (data := upload.read()):
            recording = Recording(data, " ".join((upload.filename or "recording").split())[-80:])
        asked, settings = self.studio.question(request.form, recording)
        listener = self.thread.ask(asked, settings)
        lines = self._lines(asked, not settings.stop_at_last_span, listener, start)
        response = Response(lines, mimetype="application/x-ndjson")
        response.call_on_close(listener.close)
        return response

    def _lines(self, asked: decoder.Request, speaks: bool, listener: Listener, start: float) -> Iterator[bytes]:
        """What happens to a question, a JSON object a line; empty lines show whether anybody is listening."""
        yield _line({"prompt_tokens": len(asked.ids)})
        try:
            for event in listener:
                if event is None:
                    yield b"\n"
                elif speaks or not isinstance(event, SpanDone):  # a transcript may pass through speech
                    yield _line(self._told(event, asked) | {"seconds": time.monotonic() - start})
        except UserError as error:
            yield _line({"error": str(error)})

    def _told(self, event: Event, asked: decoder.Request) -> dict[str, Any]:
        match event:
            case TextPiece(text):
                return {"text": text}
            case SpanDone(codes):
                return {"speech": self._sound(codes), "length": len(codes) / self.studio.codec.code_rate}
            case Finished(result):
                return self._ended(Kept(asked.ids, result))

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
            "tokens": len(result.ids),
            "forwards": result.num_forwards,
        }

    def _speech(self, _: Request, key: str) -> Response:
        return Response(self.studio.wav(self._answer(key).result.codes), mimetype="audio/wav")

    def _attention(self, _: Request, key: str) -> Response:
        kept = self._answer(key)
        return Response(self.studio.attention(kept.prompt, kept.result.ids), mimetype="image/png")

    def _answer(self, key: str) -> Kept:
        with self._lock:
            if key not in self._kept:
                raise NotFound(f"this answer is not kept any more (the last {MAX_KEPT} are); ask again")
            return self._kept[key]


def _hostname(host: str) -> str | None:
    """The name or address in a Host header."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _error(status: int, message: str) -> Response:
    return _json({"error": " ".join(message.split())}, status)


def _json(values: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(values), status, mimetype="application/json")


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
