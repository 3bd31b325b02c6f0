"""Connections: how many there are, how long a request may take to come in, and how each is closed.

Werkzeug's server gives every connection a thread, waits for it as long as bytes drip in, and after an answer reads whatever is
still sent before it closes. Here places are counted, a request has a deadline, and closing is left to one thread for all.
"""

import io
import selectors
import socket
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, RequestTimeout
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from ttt_dist.serving.refusals import refusal_bytes
from ttt_dist.serving.requests import MAX_UPLOAD

MAX_CONNECTIONS = 128  # each with a thread; more are refused
RECEIVE_S = 60.0  # for a whole request
SILENCE_S = 20.0  # between two pieces of it
SEND_S = 60.0  # for one piece of an answer
MAX_RECEIVED = MAX_UPLOAD + 2**21  # with the head, and what chunks add
LINGER_S = 60.0  # for the rest of an upload that was refused before it was read
LINGER_SILENCE_S = 5.0
LINGER_BYTES = 2**28
MAX_LINGERING = 256


class Incoming(io.RawIOBase):
    """The bytes of one request, as a raw stream that ends at a deadline, and once `is_answered`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + RECEIVE_S
        self._left = MAX_RECEIVED
        self.is_answered = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises RequestTimeout and RequestEntityTooLarge."""
        if self.is_answered:  # werkzeug would read on, into a request that nobody looks at any more
            return 0
        before = self._connection.gettimeout()
        self._connection.settimeout(max(1e-3, min(SILENCE_S, self._deadline - time.monotonic())))
        try:
            count = self._connection.recv_into(buffer)
        except TimeoutError:
            raise RequestTimeout("the request did not come in whole in time; send it again, faster") from None
        finally:
            self._connection.settimeout(before)
        self._left -= count
        if self._left < 0:
            raise RequestEntityTooLarge(f"the request is larger than {MAX_UPLOAD // 2**20} MB; send less")
        return count


class Connection(WSGIRequestHandler):
    """One connection. Requests are not logged: the page tells whoever asked."""

    timeout = SEND_S

    def setup(self) -> None:
        super().setup()
        self._incoming = Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming, 2**16)

    def handle(self) -> None:
        try:
            super().handle()
        except HTTPException as error:  # of the head: the application tells those of the body
            self.send_error(error.code or 400, error.description)

    def parse_request(self) -> bool:
        """Beside what http.server asks: three words, and an address that can be taken apart."""
        if len(str(self.raw_requestline, "latin-1").split()) != 3:
            self.send_error(400, "the request line is not METHOD PATH HTTP/1.1; correct it")
            return False
        if not super().parse_request():
            return False
        with suppress(ValueError):
            urlsplit(self.path)
            if self.path.isprintable():
                return True
        self.send_error(400, f"the address {self.path[:80]!r} is malformed; correct it")
        return False

    def make_environ(self) -> dict[str, Any]:
        """Headers that came twice are told so: of these two werkzeug passes on the last one alone."""
        environ = super().make_environ()
        for name in ("Content-Length", "Content-Type"):
            if name in self.headers:
                environ[name.upper().replace("-", "_")] = ",".join(self.headers.get_all(name, []))
        environ["PATH_INFO"] = environ["PATH_INFO"] or "/"  # of http://localhost:7860
        return environ

    def end_headers(self) -> None:
        super().end_headers()
        self._incoming.is_answered = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request; what http.server lays to itself (501, 505) is the client's fault too."""
        self.close_connection = True
        self._incoming.is_answered = True
        self.wfile.write(refusal_bytes(code if code < 500 else 400, message or "the request is malformed; correct it"))

    def log_request(self, *_: Any) -> None:
        """Nothing."""

    def log_error(self, *_: Any) -> None:
        """Nothing."""


class Server(ThreadedWSGIServer):
    """A thread for each of MAX_CONNECTIONS connections; further ones are told to come again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closing = ClosingThread()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            return self._refuse(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            self._places.release()
            self._refuse(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def _refuse(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # a new connection has room for a line
        with suppress(OSError):
            connection.send(refusal_bytes(503, "as many connections are open as may be; try again in a moment"))
        self.shutdown_request(connection)

    def shutdown_request(self, request: Any) -> None:
        self._closing.close(request)

    def server_close(self) -> None:
        super().server_close()
        if closing := getattr(self, "_closing", None):  # the base class calls this while it is made
            closing.stop()


class ClosingThread:
    """Closes connections once their clients have, or stopped sending: closing while a client sends would take the answer
    from it (RFC 9112, 9.6). Whoever reads to the end is told the end at once."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[socket.socket | None] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, Lingering] = {}  # oldest first
        threading.Thread(target=self._run, name="closing", daemon=True).start()

    def close(self, connection: socket.socket) -> None:
        """End the answer now, and close when it can be. For any thread."""
        try:
            connection.setblocking(False)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone
            connection.close()
        else:
            self._inbox.put(connection)

    def stop(self) -> None:
        """Close all, and end."""
        self._inbox.put(None)

    def _run(self) -> None:
        while self._take():
            for key, _ in self._selector.select(0.1):
                self._drain(key.fileobj)
            now = time.monotonic()
            for connection in [one for one, lingering in self._open.items() if lingering.is_over(now)]:
                self._drop(connection)
        for connection in list(self._open):
            self._drop(connection)

    def _take(self) -> bool:
        """Take what is to be closed, waiting for it where there is nothing else to do; False at the end."""
        while not self._open or not self._inbox.empty():
            connection = self._inbox.get()
            if connection is None:
                return False
            self._selector.register(connection, selectors.EVENT_READ)
            self._open[connection] = Lingering()
            if len(self._open) > MAX_LINGERING:
                self._drop(next(iter(self._open)))
        return True

    def _drain(self, connection: Any) -> None:
        try:
            count = len(connection.recv(2**16))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count or not self._open[connection].goes_on(count):
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()


class Lingering:
    """How long and how much a client may still send."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._left = LINGER_BYTES

    def goes_on(self, count: int) -> bool:
        """Note `count` bytes; whether more may follow."""
        self._last = time.monotonic()
        self._left -= count
        return self._left > 0

    def is_over(self, now: float) -> bool:
        """Whether the client has had its time."""
        return now - self._start > LINGER_S or now - self._last > LINGER_SILENCE_S
