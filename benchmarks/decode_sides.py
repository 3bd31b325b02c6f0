"""The sides of `benchmarks.decode`: our decoder, and the released way; on one model, along one forced course.

Random weights would neither open nor close a span where a trained model does, so the course of a reply is given: which of
its tokens are delimiters, and which. Everything else is the model's choice, and every forward is real.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import QWEN_1_5B
from benchmarks.mixture import Writer
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.inference import model_runner as forward_module
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Finished, Result, SpanDone
from ttt_dist.inference.model_runner import Asked, Wanted, choices, likeliest
from ttt_dist.inference.sequence_state import (
    Choice,
    DecodeContext,
    Phase,
    SequenceState,
    allowed_ids,
    decode_step,
    prompt_spans,
)
from ttt_dist.model.attention.kv_cache import SequenceCache as CacheSequence
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.model.layers import Head, LocalLayerFactory
from ttt_dist.model.screen import Screen
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout

FREE = -1
SHAPES = {
    "100m": ModelConfig(
        hidden_size=768, num_layers=14, num_heads=12, num_kv_heads=12, ffn_hidden_size=2048, tie_embeddings=True
    ),
    "qwen2.5-1.5b": QWEN_1_5B,
    "qwen2.5-3b": ModelConfig(
        hidden_size=2048, num_layers=36, num_heads=16, num_kv_heads=2, ffn_hidden_size=11008, tie_embeddings=True
    ),
}


@dataclass
class Measured:
    """Replies to some prompts, side by side."""

    seconds: float
    first_span_s: float
    """From the start to the first finished span; mean over the prompts."""
    num_forwards: int
    replies: list[np.ndarray]
    """Ids of each reply."""


@dataclass(frozen=True)
class Course:
    """Which delimiter stands where in a reply: `required` [n] has its id, FREE where the model chooses."""

    required: np.ndarray
    layout: TokenLayout

    @classmethod
    def of(
        cls, layout: TokenLayout, num_text: int, num_codes: int, text_ratio: int = 13, audio_ratio: int = 26
    ) -> "Course":
        """A reply of so many text tokens and codes in turn, as templates interleave them; the last span takes what is left."""
        parts: list[list[int]] = []
        while num_text > text_ratio and num_codes > audio_ratio:
            span = [layout.begin_of_audio, *[FREE] * audio_ratio, layout.end_of_audio_new]
            parts += [[FREE] * text_ratio, span]
            num_text, num_codes = num_text - text_ratio, num_codes - audio_ratio
        last = [layout.begin_of_quad, *[FREE] * num_codes, layout.end_of_audio_span_last, layout.im_end]
        return cls(np.concatenate([*parts, [FREE] * num_text, last]).astype(np.int64), layout)

    def choices(self, phase: Phase, logits: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
        """`model_runner.choices` with the course's delimiters made certain, and all others impossible."""
        columns = delimiter_columns(self.layout, phase)
        logits[:, list(columns.values())] = float("-inf")
        rows, due = self._due(wanted, columns)
        logits[rows, due] = 1e4
        return choices(phase, logits, wanted)

    def likeliest(self, screen: Screen, hidden: Tensor, columns: slice, others: Tensor, wanted: Wanted) -> Tensor:
        """`model_runner.likeliest` likewise."""
        delimiters = delimiter_columns(self.layout, "text")
        others = torch.cat([others, torch.tensor(list(delimiters.values()))])
        ids = likeliest(screen, hidden, columns, others, wanted)
        rows, due = self._due(wanted, delimiters)
        ids[rows] = torch.tensor(due, dtype=ids.dtype)
        return ids

    def _due(self, wanted: Wanted, columns: Mapping[int, int]) -> tuple[np.ndarray, list[int]]:
        """Which of the wanted places a delimiter is due at, and its column in each."""
        # Choices for masks are at their own places, an autoregressive one comes one later.
        shifts = [one.state.num_prompt - (not one.state.is_denoised) for one in wanted.asked]
        places = wanted.places - wanted.of_owners(shifts)
        due = np.where(places < len(self.required), self.required[np.minimum(places, len(self.required) - 1)], FREE)
        rows = np.flatnonzero(np.isin(due, list(columns)))
        return rows, [columns[token] for token in due[rows].tolist()]


@cache
def delimiter_columns(layout: TokenLayout, phase: Phase) -> dict[int, int]:
    """Where the logits of a phase have the delimiters of a reply: id -> column."""
    allowed = allowed_ids(layout, phase)
    return {token: token - int(allowed[0]) for token in layout.special_ids.values() if token in allowed}


class Numbers(TextTokenizer):
    """Text ids as numbers: random ids are no words."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(f"{token} " for token in ids)

    def special_id(self, piece: str) -> int | None:
        return None


def random_folder(config: ModelConfig, layout: TokenLayout, dtype: torch.dtype, device: str) -> ModelFolder:
    """A model with random weights and all that a decoder asks for beside it."""
    model = Transformer.for_layout(config, layout, LocalLayerFactory(dtype=dtype)).eval().requires_grad_(False)
    return ModelFolder(
        model=model.to(device),
        layout=layout,
        tokenizer=Numbers(),
        template=TemplateSettings(),
        objective=Objective(),
        codec=Path(),
    )


def draw_prompts(layout: TokenLayout, number: int) -> list[Request]:
    """In turn a question of 60 text tokens and one of 100 codes, the system prompt included and beside it."""
    writer = Writer(layout, seed=0)
    questions = [writer.words(4) if index % 2 == 0 else writer.heard(writer.codes(100)) for index in range(number)]
    return [Request(writer.exchange(question, writer.words(1)).segments[0].ids) for question in questions]


def decode(decoder: Decoder, requests: Sequence[Request], settings: DecodeSettings, course: Course) -> Measured:
    """All requests at once in our decoder, whatever kind its model is of."""
    session = decoder.session()
    first: dict[int, float] = {}
    results: dict[int, Result] = {}
    num_forwards, start = 0, time.perf_counter()
    with patch.multiple(forward_module, choices=course.choices, likeliest=course.likeliest):
        for request in requests:
            session.add(request, settings)
        while not session.is_idle:
            events = session.step()
            num_forwards += 1
            for key, event in events:
                if isinstance(event, SpanDone):
                    first.setdefault(key, time.perf_counter() - start)
                elif isinstance(event, Finished):
                    results[key] = event.result
    seconds = time.perf_counter() - start
    replies = [results[key].ids for key in sorted(results)]
    return Measured(seconds, sum(first.values()) / len(first), num_forwards, replies)


@torch.inference_mode()
def released_way(folder: ModelFolder, request: Request, settings: DecodeSettings, course: Course) -> Measured:
    """The released code's loop: the whole sequence anew for every token and step, logits of all positions, one request."""
    context = DecodeContext(settings, folder.layout, "ttt", folder.max_length)
    start, first = time.perf_counter(), 0.0
    state = context.start(request.ids, prompt_spans(request.ids, folder.layout, heard=True, spoken=True), request.seed)
    while state.finish is None:
        allowed = allowed_ids(folder.layout, context.phase(state))
        logits = _all_logits(folder.model, state)[context.needed(state), allowed[0] : allowed[-1] + 1].float()
        logits[:, np.setdiff1d(np.arange(logits.shape[1]), allowed - allowed[0])] = float("-inf")
        wanted = Wanted.of([Asked(state, context, CacheSequence(0), None)])
        ids, *sureness = (values.cpu().numpy() for values in course.choices(context.phase(state), logits, wanted))
        state = decode_step(state, [Choice(ids + allowed[0], *sureness)], context)
        first = first or (time.perf_counter() - start if state.num_audio else 0.0)
    return Measured(time.perf_counter() - start, first, state.num_forwards, [state.ids[state.num_prompt :]])


def _all_logits(model: Transformer, state: SequenceState) -> Tensor:
    """Logits [n, V] of all positions, in the model's type, as Hugging Face's forward gives them."""
    head, device = model.head, next(model.parameters()).device
    assert isinstance(head, Head)
    ids, span_ids = (torch.from_numpy(row.astype(np.int64)).to(device) for row in (state.ids, state.span_ids))
    plan = attention_plan(torch.ones_like(ids).unsqueeze(0), span_ids.unsqueeze(0), model.dtype)
    return head.product(model.hidden(ids, torch.arange(len(ids), device=device), plan), slice(0, head.num_rows))
