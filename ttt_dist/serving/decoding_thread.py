"""The one thread that decodes: the requests of all connections share its forwards, and read their events from queues."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import NamedTuple

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.decoder import Decoder, Progress, Request
from ttt_dist.inference.detokenizer import Event, Finished
from ttt_dist.util.errors import UserError

MAX_OPEN = 96  # requests that decode or wait, fewer than connections: the page and what was spoken can be had meanwhile
HEARTBEAT_S = 0.25


class BusyError(UserError):
    """As many requests are open as may be: the same one may be sent again later."""


class Listener:
    """The events of one request, in order. For one thread; `close` it where nobody listens any more."""

    def __init__(self, owner: "DecodingThread") -> None:
        self._owner = owner
        self._events: SimpleQueue[Event | UserError] = SimpleQueue()
        self.progress: Progress | None = None
        """How far the request is, of the last forward; None while it waits."""

    def __iter__(self) -> Iterator[Event | None]:
        """Events up to `Finished`; None after HEARTBEAT_S without one. Raises UserError where decoding cannot go on."""
        event: Event | UserError | None = None
        while not isinstance(event, Finished):
            try:
                event = self._events.get(timeout=HEARTBEAT_S)
            except Empty:
                event = None
            if isinstance(event, UserError):
                raise event
            yield event

    def put(self, event: Event | UserError) -> None:
        """Hand over what happened; called by the decoding thread."""
        self._events.put(event)

    def close(self) -> None:
        """Stop decoding the request, if it still is."""
        self._owner.drop(self)


class _Asked(NamedTuple):
    request: Request
    settings: DecodeSettings
    listener: Listener


class DecodingThread:
    """Owns a decoder's session. `ask` and `drop` may be called from any thread."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._inbox: SimpleQueue[_Asked | Listener | None] = SimpleQueue()  # asked, to be dropped, to end
        self._open: set[Listener] = set()
        self._lock = threading.Lock()  # of `_open`
        self._session = decoder.session()
        self._keys: dict[int, Listener] = {}
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def ask(self, request: Request, settings: DecodeSettings) -> Listener:
        """Queue a request. Raises UserError where the model cannot take it, BusyError where too many are open."""
        self.decoder.require(request)
        listener = Listener(self)
        with self._lock:
            if len(self._open) >= MAX_OPEN:
                raise BusyError(f"{MAX_OPEN} requests are waiting already; try again in a moment")
            self._open.add(listener)
        self._inbox.put(_Asked(request, settings, listener))
        return listener

    def drop(self, listener: Listener) -> None:
        """Forget a request; nothing happens where it has ended."""
        if self._forget(listener):
            self._inbox.put(listener)

    def close(self) -> None:
        """End the thread after its present forward; open requests are told so."""
        self._inbox.put(None)
        self._thread.join()

    def _forget(self, listener: Listener) -> bool:
        with self._lock:
            was_open = listener in self._open
            self._open.discard(listener)
        return was_open

    def _run(self) -> None:
        while self._take_messages():
            try:
                for key, event in self._session.step():
                    self._tell(key, event)
                for key, listener in self._keys.items():
                    listener.progress = self._session.progress(key)
            except Exception as error:  # a forward that fails, such as for memory, must not end the server
                self._session = self.decoder.session()
                reason = f"{type(error).__name__}: {error}"
                self._end(self._keys.values(), f"decoding failed ({reason}); ask again, or for less")
        with self._lock:
            left = list(self._open)
        self._end(left, "the server is being stopped; start it again and repeat the request")

    def _take_messages(self) -> bool:
        """Take what has come in, waiting for it where there is nothing to decode; False at the end."""
        while self._session.is_idle or not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                return False
            if isinstance(message, Listener):
                for key in [key for key, listener in self._keys.items() if listener is message]:
                    del self._keys[key]
                    self._session.drop(key)
            else:
                self._keys[self._session.add(message.request, message.settings)] = message.listener
        return True

    def _tell(self, key: int, event: Event) -> None:
        listener = self._keys[key]
        if isinstance(event, Finished):
            del self._keys[key]
            self._forget(listener)
        listener.put(event)

    def _end(self, listeners: Iterable[Listener], message: str) -> None:
        for listener in listeners:
            self._forget(listener)
            listener.put(UserError(message))
        self._keys.clear()
