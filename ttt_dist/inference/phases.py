"""The decoding of one request as a pure function: state and choices in, next state out (method: decoding).

A response of a `ttt` model alternates between text, one token per forward, and spans, whose blocks of masks are denoised
in several forwards. An `ar` model writes codes one by one as well; the whole response of a `nar` model is one span. A
state holds the whole sequence and says at which positions it needs a choice and which of its tokens are final; how
choices are made and what else is in the batch is no concern of this file.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from ttt_dist.decode_settings import DecodeSettings
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.tokens import TokenLayout

Finish = Literal["end_of_turn", "last_span", "max_text", "max_codes", "span_limit", "max_length"]
Phase = Literal["text", "span", "response"]


@dataclass(frozen=True)
class State:
    """One request in the middle of its response."""

    ids: np.ndarray
    """Prompt and response so far, int32 [n]; the open block holds masks."""
    span_ids: np.ndarray
    """Numbers of bidirectional spans, int32 [n]; 0 is causal."""
    num_prompt: int
    seed: int
    num_forwards: int = 0
    num_text: int = 0
    num_audio: int = 0
    """Audio tokens of closed spans."""
    span_start: int | None = None
    """First token of the open span; None in text."""
    block_start: int | None = None
    """First token of the open block, in a span of masks."""
    steps_left: int = 0
    """Forwards left to the open block."""
    finish: Finish | None = None
    """Why the response ended; None while it goes on."""

    @property
    def settled(self) -> int:
        """Tokens that are written and will stay: all but the open span."""
        return len(self.ids) if self.span_start is None else self.span_start


class Choice(NamedTuple):
    """What the model would write at the positions that a state needs."""

    ids: np.ndarray
    """Token ids [n]."""
    confidence: np.ndarray
    """The model's probability of each [n]; means nothing in text."""


@dataclass(frozen=True)
class Rules:
    """What `advance` needs besides the state."""

    settings: DecodeSettings
    layout: TokenLayout
    kind: str
    """What the model was trained for: objective.kind."""
    max_length: int
    """The longest sequence that the model takes, in tokens."""

    def start(self, ids: np.ndarray, span_ids: np.ndarray, seed: int) -> State:
        """The state before the first forward, of a prompt's ids and spans."""
        state = State(ids.astype(np.int32), span_ids.astype(np.int32), len(ids), seed)
        return _open_span(state, self) if self.kind == "nar" else state

    def phase(self, state: State) -> Phase:
        """Which tokens may come next: see `allowed_ids`."""
        if self.kind == "nar":
            return "response"
        return "text" if state.span_start is None else "span"

    def needed(self, state: State) -> np.ndarray:
        """Positions whose choice `advance` takes: the masked ones of an open block, else the last one."""
        start = state.block_start
        if start is None:
            return np.array([len(state.ids) - 1])
        return start + np.flatnonzero(state.ids[start:] == self.layout.mask)

    def final(self, state: State) -> int:
        """Tokens whose keys and values the next forward settles: nothing that they see changes any more."""
        if state.block_start is None or state.span_start is None:
            return len(state.ids)
        return state.block_start if self.settings.block_cache == "block_causal" else state.span_start


@cache
def allowed_ids(layout: TokenLayout, phase: Phase) -> np.ndarray:
    """Ids that may be written: text class in text, codes and ends in a span, both in a response that is one span."""
    if phase == "response":
        return np.flatnonzero(layout.text_allowed | layout.span_allowed)
    return np.flatnonzero(layout.text_allowed if phase == "text" else layout.span_allowed)


def uniforms(state: State, count: int) -> np.ndarray:
    """Random numbers of the next forward [2, count], in [0, 1): they depend on (seed, number of the forward) alone.

    The first row samples tokens, the second orders random remasking.
    """
    return np.random.default_rng([state.seed, state.num_forwards]).random((2, count))


def advance(state: State, choice: Choice, rules: Rules) -> State:
    """The state after one forward, whose choices are those at `rules.needed`."""
    if state.block_start is not None:
        return _denoise(state, choice, rules)
    state = replace(state, num_forwards=state.num_forwards + 1)
    write = _write_text if state.span_start is None else _write_code
    return write(state, int(choice.ids[0]), rules)


def _write_text(state: State, token: int, rules: Rules) -> State:
    """Append a text token; a start of audio opens a span, the end of turn ends the response."""
    layout = rules.layout
    state = replace(_append(state, np.array([token]), 0), num_text=state.num_text + 1)
    if token == layout.im_end:
        return replace(state, finish="end_of_turn")
    if token == layout.begin_of_quad and rules.settings.stop_at_last_span:
        return replace(state, finish="last_span")
    if token in (layout.begin_of_audio, layout.begin_of_quad):
        return _open_span(state, rules)
    return _unless_too_long(state, rules)


def _write_code(state: State, token: int, rules: Rules) -> State:
    """Append a code to the open span of an `ar` model, or an end that closes it."""
    state = _append(state, np.array([token]), 0)
    if token in _ends(rules.layout) or not _room(state, rules):
        return _close_span(state, len(state.ids), rules)
    return state


def _open_span(state: State, rules: Rules) -> State:
    state = replace(state, span_start=len(state.ids))
    if not _room(state, rules):
        return _close_span(state, len(state.ids), rules)
    return state if rules.kind == "ar" else _append_block(state, rules)


def _append_block(state: State, rules: Rules) -> State:
    """Add masks to the open span, as many as may be."""
    assert state.span_start is not None
    count = min(rules.settings.block, _room(state, rules))
    starts_anew = state.block_start is None or rules.settings.block_cache == "block_causal"
    number = int(state.span_ids.max(initial=0)) + 1 if starts_anew else int(state.span_ids[-1])
    state = replace(state, block_start=len(state.ids), steps_left=rules.settings.steps)
    return _append(state, np.full(count, rules.layout.mask), number)


def _denoise(state: State, choice: Choice, rules: Rules) -> State:
    """Commit the most confident of the masked positions; a finished block closes the span or is followed by another."""
    start = state.span_start
    assert start is not None
    settings, masked = rules.settings, rules.needed(state)
    order = choice.confidence if settings.remasking == "low_confidence" else uniforms(state, len(masked))[1]
    num_sure = int((choice.confidence >= settings.threshold).sum()) if settings.threshold else 0
    chosen = most_confident(order, max(-(-len(masked) // state.steps_left), num_sure))
    committed = state.ids.copy()
    committed[masked[chosen]] = choice.ids[chosen]
    num_forwards, steps_left = state.num_forwards + 1, max(state.steps_left - 1, 1)
    state = replace(state, ids=committed, num_forwards=num_forwards, steps_left=steps_left)

    span = committed[start:]
    ends = np.flatnonzero(np.isin(span, [rules.layout.im_end] if rules.kind == "nar" else _ends(rules.layout)))
    left = np.flatnonzero(span == rules.layout.mask)
    if len(ends) and (not len(left) or left[0] > ends[0]):
        # What is still masked lies behind the end and would be cut: committed tokens are final, so it can be cut now.
        return _close_span(state, start + int(ends[0]) + 1, rules)
    if len(left):
        return state
    return _append_block(state, rules) if _room(state, rules) else _close_span(state, len(committed), rules)


def most_confident(confidence: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of confidence [n]; of equals the earlier."""
    return np.argsort(-confidence, kind="stable")[:count]


def _close_span(state: State, end: int, rules: Rules) -> State:
    """Cut the open span at `end`, and go on with text; the span of a `nar` model is its response."""
    assert state.span_start is not None
    num_audio = state.num_audio + end - state.span_start
    ids, span_ids = state.ids[:end], state.span_ids[:end]
    state = replace(
        state, ids=ids, span_ids=span_ids, span_start=None, block_start=None, steps_left=0, num_audio=num_audio
    )
    if rules.kind == "nar":
        return replace(state, finish="end_of_turn" if end and ids[-1] == rules.layout.im_end else "span_limit")
    return _unless_too_long(state, rules)


def _append(state: State, ids: np.ndarray, span_id: int) -> State:
    span_ids = np.full(len(ids), span_id, dtype=np.int32)
    joined = np.concatenate([state.ids, ids.astype(np.int32)])
    return replace(state, ids=joined, span_ids=np.concatenate([state.span_ids, span_ids]))


def _room(state: State, rules: Rules) -> int:
    """Tokens that the open span may still take."""
    assert state.span_start is not None
    length, settings = len(state.ids) - state.span_start, rules.settings
    limits = (
        settings.span_limit - length,
        settings.max_codes - state.num_audio - length,
        rules.max_length - len(state.ids),
    )
    return max(min(limits), 0)


def _unless_too_long(state: State, rules: Rules) -> State:
    if state.num_text >= rules.settings.max_text:
        return replace(state, finish="max_text")
    if state.num_audio >= rules.settings.max_codes:
        return replace(state, finish="max_codes")
    return replace(state, finish="max_length") if len(state.ids) >= rules.max_length else state


def _ends(layout: TokenLayout) -> list[int]:
    return [layout.end_of_audio_new, layout.end_of_audio_span_last]


def prompt_spans(ids: np.ndarray, layout: TokenLayout, is_bidirectional: bool) -> np.ndarray:
    """Span numbers of a prompt's audio as training gave them, int32 [n]; all 0 where it was causal."""
    numbers = np.zeros(len(ids), dtype=np.int32)
    for number, (start, end) in enumerate(spans(ids, layout) if is_bidirectional else [], start=1):
        numbers[start:end] = number
    return numbers
