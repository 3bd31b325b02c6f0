"""The decoding of one request as a pure function: state and logits in, next state out (method: decoding).

A response alternates between text, one token per forward, and spans, whose blocks of masks are denoised in several
forwards. A state holds the whole sequence and says at which positions it needs logits; how these are computed (all
anew, or from a cache) and what else is in the batch is no concern of this file.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ttt_dist.inference.sampling import choose_codes, choose_text, most_confident, restrict
from ttt_dist.inference.settings import DecodeSettings
from ttt_dist.sequence.tokens import TokenLayout

Finish = Literal["end_of_turn", "last_span", "max_text"]


@dataclass(frozen=True)
class State:
    """One request in the middle of its response."""

    ids: np.ndarray
    """Prompt and response so far, int32 [n]; the open block holds masks."""
    num_prompt: int
    seed: int
    num_forwards: int = 0
    num_text: int = 0
    span_start: int | None = None
    """First token of the open span; None in text."""
    steps_left: int = 0
    """Forwards left to the open block."""
    finish: Finish | None = None
    """Why the response ended; None while it goes on."""

    def needed(self, layout: TokenLayout) -> np.ndarray:
        """Positions whose logits `advance` takes: the last one in text, the masked ones in a span."""
        if self.span_start is None:
            return np.array([len(self.ids) - 1])
        return self.span_start + np.flatnonzero(self.ids[self.span_start :] == layout.mask)


@dataclass(frozen=True)
class Rules:
    """What `advance` needs besides the state: settings, layout, and its tables of allowed tokens on the device."""

    settings: DecodeSettings
    layout: TokenLayout
    text_allowed: Tensor
    span_allowed: Tensor

    @classmethod
    def of(cls, settings: DecodeSettings, layout: TokenLayout, device: torch.device) -> "Rules":
        tables = (torch.from_numpy(table).to(device) for table in (layout.text_allowed, layout.span_allowed))
        return cls(settings, layout, *tables)


def advance(state: State, logits: Tensor, rules: Rules) -> State:
    """The state after one forward whose logits at `state.needed` are [n, V].

    Random choices depend on (seed, number of the forward) alone.
    """
    rng = np.random.default_rng([state.seed, state.num_forwards])
    state = replace(state, num_forwards=state.num_forwards + 1)
    if state.span_start is None:
        return _write_text(state, choose_text(restrict(logits[0], rules.text_allowed), rules.settings, rng), rules)
    return _denoise(state, restrict(logits, rules.span_allowed), rng, rules)


def _write_text(state: State, token: int, rules: Rules) -> State:
    """Append a text token; a start of audio opens a span, the end of turn ends the response."""
    layout, settings = rules.layout, rules.settings
    state = replace(state, ids=np.append(state.ids, np.int32(token)), num_text=state.num_text + 1)
    if token == layout.im_end:
        return replace(state, finish="end_of_turn")
    if token == layout.begin_of_quad and settings.stop_at_last_span:
        return replace(state, finish="last_span")
    if token in (layout.begin_of_audio, layout.begin_of_quad):
        return _append_block(replace(state, span_start=len(state.ids)), rules)
    return _unless_too_long(state, settings)


def _append_block(state: State, rules: Rules) -> State:
    """Add masks to the open span, up to its limit."""
    assert state.span_start is not None
    settings = rules.settings
    count = min(settings.block, settings.span_limit - (len(state.ids) - state.span_start))
    masks = np.full(count, rules.layout.mask, dtype=np.int32)
    return replace(state, ids=np.concatenate([state.ids, masks]), steps_left=settings.steps)


def _denoise(state: State, logits: Tensor, rng: np.random.Generator, rules: Rules) -> State:
    """Commit the most confident of the masked positions; a finished block closes the span or is followed by another."""
    assert state.span_start is not None
    layout, settings = rules.layout, rules.settings
    masked = state.needed(layout)
    ids, confidence = choose_codes(logits, settings.code_temperature, rng)
    chosen = most_confident(confidence, -(-len(masked) // state.steps_left)).cpu().numpy()
    committed = state.ids.copy()
    committed[masked[chosen]] = ids.cpu().numpy()[chosen]
    state = replace(state, ids=committed, steps_left=max(state.steps_left - 1, 1))

    span = committed[state.span_start :]
    ends = np.flatnonzero((span == layout.end_of_audio_new) | (span == layout.end_of_audio_span_last))
    left = np.flatnonzero(span == layout.mask)
    if len(ends) and (not len(left) or left[0] > ends[0]):
        # What is still masked lies behind the end and would be cut: committed tokens are final, so it can be cut now.
        return _unless_too_long(_close_span(state, len(committed) - len(span) + int(ends[0]) + 1), settings)
    if len(left):
        return state
    if len(span) >= settings.span_limit:
        return _unless_too_long(_close_span(state, len(committed)), settings)
    return _append_block(state, rules)


def _close_span(state: State, end: int) -> State:
    return replace(state, ids=state.ids[:end], span_start=None, steps_left=0)


def _unless_too_long(state: State, settings: DecodeSettings) -> State:
    return replace(state, finish="max_text") if state.num_text >= settings.max_text else state
