"""Decoding with an exported model: requests in different phases and of different lengths share each forward pass.

    decoder = Decoder(load_folder("runs/demo/export"))
    (response,) = decoder.generate([Request(template.tts_prompt("three one four"))], DecodeSettings(block=6, steps=6))

What a request gets does not depend on its batch mates.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from ttt_dist.config.decode import DEFAULTS, DecodeSettings
from ttt_dist.inference.detokenizer import Event, Finished, IncrementalDetokenizer, Result
from ttt_dist.inference.model_runner import Asked, ModelRunner
from ttt_dist.inference.sequence_state import Choice, DecodeContext, SequenceState, decode_step, prompt_spans
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.model.layers import lay_transposed
from ttt_dist.model.tiles import tile_vocabulary
from ttt_dist.util.errors import UserError

SMALL = 2e7  # parameters: more of them are read from memory at every forward, which several cores better do together


@dataclass(frozen=True)
class Request:
    """A prompt: ids up to and including the assistant's header, and the seed of what is sampled."""

    ids: np.ndarray
    seed: int = 0
    max_new_tokens: int | None = None
    """Most tokens of the response, of text and audio together; None: as many as the model takes."""


class Decoder:
    """Decodes with one exported model, up to `batch_size` requests side by side.

    On the CPU it takes the model over: matrices are laid transposed, and vocabulary in tiles (`ttt_dist.model.tiles`), in
    place. Save or train another copy. `takes_over` false leaves the weights, which somebody else holds, as they are: decoding
    is then slower on the CPU.
    """

    def __init__(self, folder: ModelFolder, batch_size: int = 32, takes_over: bool = True) -> None:
        self.folder = folder
        self.batch_size = batch_size
        if takes_over:
            lay_transposed(folder.model)
            tile_vocabulary(folder.model)

    def require(self, request: Request) -> None:
        """Raise UserError for a prompt that is empty, longer than the model's limit, or not of its vocabulary, and for no response."""
        size, limit = self.folder.layout.vocab_size, self.folder.max_length
        for name, value, least in (("max_new_tokens", request.max_new_tokens, 1), ("seed", request.seed, 0)):
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; give a whole number from {least} on")
        if not len(request.ids):
            raise UserError("the prompt is empty; render it by the model's template")
        if not 0 <= request.ids.min() <= request.ids.max() < size:
            raise UserError(f"the prompt has ids outside the vocabulary of {size}; render it by the model's template")
        if len(request.ids) >= limit:
            raise UserError(
                f"the prompt has {len(request.ids)} tokens, and the model takes {limit} with its response; shorten it"
            )

    def require_mode(self, settings: DecodeSettings) -> None:
        """Raise UserError for a way to write audio that the model was not trained for."""
        settings.require_mode(self.folder.objective.kind, self.folder.objective.learns_audio_ar)

    def generate(
        self,
        requests: Sequence[Request],
        settings: DecodeSettings = DEFAULTS,
        on_done: Callable[[], None] = lambda: None,
    ) -> list[Result]:
        """Responses in the order of the requests; `on_done` is called after each, in any order.

        On CPU each core runs batches of its own where the model is small: many small products scale better over batches
        than within. Raises UserError for a prompt that `require` refuses.
        """
        num_workers = min(self._num_workers(), len(requests))
        if num_workers <= 1:
            return self._generate(requests, settings, on_done)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(num_workers) as pool:
                shares = [requests[worker::num_workers] for worker in range(num_workers)]
                parts = list(pool.map(lambda share: self._generate(share, settings, on_done), shares))
        finally:
            torch.set_num_threads(before)
        return [parts[index % num_workers][index // num_workers] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request], settings: DecodeSettings = DEFAULTS) -> Iterator[tuple[int, Event]]:
        """Indices of requests and what happens to them, as it happens. Raises UserError as `generate`."""
        self.require_mode(settings)
        session = self.session()
        for index, request in enumerate(requests):
            try:
                session.add(request, settings)
            except UserError as error:
                raise UserError(f"request {index}: {error}") from None
        while not session.is_idle:
            yield from session.step()

    def session(self) -> "Session":
        """Decoding that requests may join and leave at any time."""
        return Session(self)

    def _num_workers(self) -> int:
        is_small = sum(weight.numel() for weight in self.folder.model.parameters()) < SMALL
        return num_cores() if is_small and next(self.folder.model.parameters()).device.type == "cpu" else 1

    def _generate(
        self, requests: Sequence[Request], settings: DecodeSettings, on_done: Callable[[], None]
    ) -> list[Result]:
        results: dict[int, Result] = {}
        for index, event in self.stream(requests, settings):
            if isinstance(event, Finished):
                results[index] = event.result
                on_done()
        return [results[index] for index in range(len(requests))]


@dataclass
class Running(Asked):
    """A request in the middle of its response."""

    reader: IncrementalDetokenizer
    num_forwards: int = 0
    num_audio_forwards: int = 0

    def take(self, choices: Sequence[Choice]) -> list[Event]:
        """Go on by what a forward has chosen, and tell what came of it."""
        before, passes = self.state, 1 + self.is_guided
        self.state = after = decode_step(before, choices, self.context)
        # Under tidar a forward of text has choices of the drafts behind openers, too: a span's first, where it writes one.
        has_drafted = len(choices) > 1 and after.ids[len(before.ids)] in self.context.openers
        self.num_forwards += passes
        self.num_audio_forwards += passes * (before.span_start is not None or has_drafted)
        events = self.reader.read(after.ids[max(before.num_committed, after.num_prompt) : after.num_committed])
        if after.finish is None:
            return events
        return events + self.reader.end(after, self.num_forwards, self.num_audio_forwards)


@dataclass(frozen=True)
class Progress:
    """How far a response is, its open span left out: what that holds may yet change, or be cut."""

    num_tokens: int
    num_codes: int
    num_forwards: int


class Session:
    """Continuous batching: a request takes the place of one that has ended. For one thread."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._forwards = ModelRunner(decoder.folder.model, decoder.folder.layout)
        self._num_added = 0
        self._waiting: deque[tuple[int, SequenceState, DecodeContext]] = deque()
        self._active: dict[int, Running] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request is left."""
        return not self._waiting and not self._active

    def add(self, request: Request, settings: DecodeSettings = DEFAULTS) -> int:
        """Queue a request; its key, counted from 0. Raises UserError where `require` or `require_mode` refuses it."""
        self.decoder.require(request)
        self.decoder.require_mode(settings)
        folder, ids = self.decoder.folder, np.asarray(request.ids)
        longest = folder.max_length if request.max_new_tokens is None else len(ids) + request.max_new_tokens
        context = DecodeContext(settings, folder.layout, folder.objective.kind, min(longest, folder.max_length))
        heard = folder.objective.kind != "ar" and folder.objective.prompt_audio == "bidirectional"
        spoken = settings.audio_mode == "diffusion" if folder.objective.kind == "ttt" else heard
        state = context.start(ids, prompt_spans(ids, folder.layout, heard, spoken), request.seed)
        key, self._num_added = self._num_added, self._num_added + 1
        self._waiting.append((key, state, context))
        return key

    def committed(self, key: int) -> np.ndarray:
        """The tokens of a running response that will not change any more, int32 [n]."""
        state = self._active[key].state
        return state.ids[state.num_prompt : max(state.num_committed, state.num_prompt)]

    def drop(self, key: int) -> None:
        """Forget a request, if it is still here."""
        if key in self._active:
            self._leave(key)
        self._waiting = deque(item for item in self._waiting if item[0] != key)

    def progress(self, key: int) -> Progress | None:
        """How far a request is; None where it waits, or has ended."""
        if (running := self._active.get(key)) is None:
            return None
        ids = self.committed(key)  # what a block has beyond may yet be cut off by its end of audio
        return Progress(len(ids), len(self.decoder.folder.layout.codes_of(ids)), running.num_forwards)

    def step(self) -> list[tuple[int, Event]]:
        """One forward over all active requests, and what came of it; nothing where none is left."""
        room = self.decoder.batch_size - len(self._active)
        joining = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        for item in sorted(joining, key=lambda item: len(item[1].ids)):  # neighbours of like length share runs
            self._join(*item)
        events: list[tuple[int, Event]] = []
        found = self._forwards(list(self._active.values()))
        for (key, running), choices in zip(list(self._active.items()), found, strict=True):
            events += [(key, event) for event in running.take(choices)]
            if running.state.finish is not None:
                self._leave(key)
        return events

    def _join(self, key: int, state: SequenceState, context: DecodeContext) -> None:
        folder, cache = self.decoder.folder, self._forwards.cache
        guide = cache.take() if context.settings.cfg > 0 else None
        self._active[key] = Running(
            state, context, cache.take(), guide, IncrementalDetokenizer(folder.tokenizer, folder.layout)
        )

    def _leave(self, key: int) -> None:
        running = self._active.pop(key)
        for sequence in filter(None, (running.own, running.guide)):
            self._forwards.cache.free(sequence)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(device: torch.device) -> int:
    """Threads that may work on something of their own each: on the CPU so many as keep all cores busy, on CUDA one."""
    return 1 if device.type == "cuda" else max(num_cores() // torch.get_num_threads(), 1)
