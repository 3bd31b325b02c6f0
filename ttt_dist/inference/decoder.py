"""Batched decoding: requests in different phases and of different lengths share each forward pass.

The requests of a batch are the samples of one packed row, so no token is padding. Every forward recomputes the whole
sequences; the phases (`phases.py`) do not know that.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttt_dist.errors import UserError
from ttt_dist.inference.phases import Finish, Rules, State, advance
from ttt_dist.inference.settings import DecodeSettings
from ttt_dist.model.attention import attention_plan
from ttt_dist.model.huggingface import ModelFolder
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout


@dataclass(frozen=True)
class Request:
    """A prompt: ids up to and including the assistant's header, and the seed of what is sampled."""

    ids: np.ndarray
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """A response."""

    ids: np.ndarray
    """All its tokens, int32 [n]."""
    text: str
    text_ids: np.ndarray
    """Its text tokens without delimiters."""
    spans: list[np.ndarray]
    """Codec codes of each audio span, in order."""
    finish: Finish
    """Why it ended."""
    num_forwards: int

    @property
    def codes(self) -> np.ndarray:
        """The codes of all spans, one after the other."""
        return np.concatenate([np.zeros(0, dtype=np.int32), *self.spans])


class Decoder:
    """Decodes with one model; `prompt_audio` says how its training saw audio in prompts (objective.prompt_audio)."""

    def __init__(
        self,
        model: Transformer,
        layout: TokenLayout,
        tokenizer: TextTokenizer,
        prompt_audio: str = "bidirectional",
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.layout = layout
        self.tokenizer = tokenizer
        self.prompt_audio = prompt_audio
        self.batch_size = batch_size

    @classmethod
    def from_folder(cls, folder: ModelFolder, batch_size: int = 32) -> "Decoder":
        """Decoder of an exported model. Raises UserError where it was trained for something else."""
        objective = folder.objective
        if objective.kind != "ttt":
            raise UserError(
                f"the model was trained with objective.kind={objective.kind}; only 'ttt' models can be decoded"
            )
        return cls(folder.model, folder.layout, folder.tokenizer, objective.prompt_audio, batch_size)

    def generate(
        self, requests: Sequence[Request], settings: DecodeSettings, on_done: Callable[[], None] = lambda: None
    ) -> list[Result]:
        """Responses in the order of the requests; `on_done` is called after each, in any order.

        Up to `batch_size` requests run side by side, and the next one takes the place of one that ends. What a request
        gets does not depend on its batch mates. On CPU each core runs a batch of its own: many small products scale
        better over batches than within. Raises UserError for an empty prompt or an id outside the vocabulary.
        """
        for number, request in enumerate(requests):
            if not len(request.ids) or not 0 <= request.ids.min() <= request.ids.max() < self.layout.vocab_size:
                raise UserError(
                    f"request {number}: empty prompt, or ids outside the vocabulary; render it by the template"
                )
        num_workers = min(num_cores() if self._device.type == "cpu" else 1, len(requests))
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

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def _generate(
        self, requests: Sequence[Request], settings: DecodeSettings, on_done: Callable[[], None]
    ) -> list[Result]:
        rules = Rules.of(settings, self.layout, self._device)
        results: dict[int, Result] = {}
        active: dict[int, State] = {}
        waiting = iter(enumerate(requests))
        while len(results) < len(requests):
            while len(active) < self.batch_size and (following := next(waiting, None)) is not None:
                index, request = following
                active[index] = State(np.asarray(request.ids, dtype=np.int32), len(request.ids), request.seed)
            states = list(active.values())
            for index, state, logits in zip(list(active), states, self._logits(states), strict=True):
                active[index] = advance(state, logits, rules)
                if active[index].finish is not None:
                    results[index] = self._result(active.pop(index))
                    on_done()
        return [results[index] for index in range(len(requests))]

    def _logits(self, states: list[State]) -> list[Tensor]:
        """Logits [n, V] at the positions that each state needs, from one forward over all."""
        lengths = [len(state.ids) for state in states]
        starts = np.cumsum([0, *lengths[:-1]])
        rows = (
            np.concatenate([state.ids for state in states]),
            np.concatenate([np.arange(length) for length in lengths]),
            np.repeat(np.arange(1, len(states) + 1), lengths),
            self._span_ids(states),
        )
        tensors = (torch.from_numpy(row.astype(np.int64)).unsqueeze(0).to(self._device) for row in rows)
        input_ids, position_ids, sample_ids, span_ids = tensors
        plan = attention_plan(sample_ids, span_ids, self.model.dtype)
        hidden = self.model.hidden(input_ids[0], position_ids[0], plan)
        needed = [start + state.needed(self.layout) for start, state in zip(starts, states, strict=True)]
        return [self.model.logits(hidden[torch.from_numpy(rows).to(hidden.device)]) for rows in needed]

    def _span_ids(self, states: list[State]) -> np.ndarray:
        """Span numbers of the concatenated sequences, as training gives them."""
        numbers, parts = 0, []
        for state in states:
            part = np.zeros(len(state.ids), dtype=np.int64)
            for start, end in spans(state.ids, self.layout):
                if start >= state.num_prompt or self.prompt_audio == "bidirectional":
                    numbers += 1
                    part[start:end] = numbers
            parts.append(part)
        return np.concatenate(parts)

    def _result(self, state: State) -> Result:
        layout, ids = self.layout, state.ids[state.num_prompt :]
        is_text = ~layout.is_audio[ids] & ~np.isin(ids, list(layout.special_ids.values()))
        text_ids = ids[is_text & (ids < layout.num_text_tokens)]
        codes = [layout.codes_of(ids[start:end]) for start, end in spans(ids, layout)]
        assert state.finish is not None
        text = self.tokenizer.decode(text_ids.tolist())
        return Result(ids, text, text_ids, [part for part in codes if len(part)], state.finish, state.num_forwards)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
