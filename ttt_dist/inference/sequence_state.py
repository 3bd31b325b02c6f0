"""The decoding of one request as a pure function: state and choices in, next state out (docs/method.md#decoding).

A response of a `ttt` model alternates between text, one token per forward, and spans, whose blocks of masks are denoised
in several forwards. An `ar` model writes codes one by one as well; the whole response of a `nar` model is one span. A
state holds the whole sequence and says at which positions it needs a choice and which of its tokens are final; how
choices are made and what else is in the batch is no concern of this file.

Two ways lead from a choice to a token. What is written (text, and codes one by one) follows the position that it is chosen at;
what is denoised is chosen at its own. A block that is verified has been denoised, as a draft, and is then written: one causal
forward says what would follow the opener and each token of the draft. Under `tidar` that forward makes the next draft as well: beside
the draft that it reads stand blocks of masks, one for each token with which what is written may end. Likewise the first draft of a
span comes from the forward that writes its opener: behind text stand the openers that may come, with a block of masks each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.tokens import TokenLayout

Finish = Literal["end_of_turn", "last_span", "max_text", "max_codes", "span_limit", "max_length"]
OWN_ENDS: tuple[Finish, ...] = ("end_of_turn", "last_span")
"""Where the model has said all that it was asked for."""
LIMITS: tuple[Finish, ...] = ("max_text", "max_codes", "span_limit", "max_length")
"""What cut it off before."""
Phase = Literal["text", "span", "codes", "response"]


@dataclass(frozen=True, kw_only=True)
class SequenceState:
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
    is_drafted: bool = False
    """Whether the open block has no masks left, and the next forward reads it from left to right. It may be empty under `tidar`."""
    finish: Finish | None = None
    """Why the response ended; None while it goes on."""

    @property
    def num_committed(self) -> int:
        """Tokens that are written and will stay: all but the open span."""
        return len(self.ids) if self.span_start is None else self.span_start

    @property
    def is_denoised(self) -> bool:
        """Whether the next choices are for the masks they are made at, and not for what follows."""
        return self.block_start is not None and not self.is_drafted


class Choice(NamedTuple):
    """What the model would write at the positions that a state needs."""

    ids: np.ndarray
    """Token ids [n]."""
    probability: np.ndarray
    """The model's, of each [n]; means nothing in text."""
    confidence: np.ndarray
    """How sure the model is by the rule of `remasking` [n]; likewise."""


@dataclass(frozen=True)
class DecodeContext:
    """What `decode_step` needs besides the state."""

    settings: DecodeSettings
    layout: TokenLayout
    kind: str
    """What the model was trained for: objective.kind."""
    max_length: int
    """The longest sequence that the model takes, in tokens."""

    def start(self, ids: np.ndarray, span_ids: np.ndarray, seed: int) -> SequenceState:
        """The state before the first forward, of a prompt's ids and spans."""
        state = SequenceState(
            ids=ids.astype(np.int32), span_ids=span_ids.astype(np.int32), num_prompt=len(ids), seed=seed
        )
        return _open_span(state, self) if self.kind == "nar" else state

    def phase(self, state: SequenceState) -> Phase:
        """Which tokens may come next: see `allowed_ids`."""
        if self.kind == "nar":
            return "response"
        if state.span_start is None:
            return "text"
        return "codes" if self.reads_ends and state.is_denoised else "span"

    @property
    def is_causal(self) -> bool:
        """Whether codes are written one by one."""
        return self.kind == "ar" or (self.kind == "ttt" and self.settings.audio_mode == "ar")

    @property
    def is_verified(self) -> bool:
        """Whether denoised blocks are drafts."""
        return self.settings.audio_mode in ("verified", "tidar")

    @property
    def drafts_ahead(self) -> bool:
        """Whether what verifies a draft makes the next one too."""
        return self.settings.audio_mode == "tidar"

    @property
    def reads_ends(self) -> bool:
        """Whether denoised blocks are read from left to right once, to see where the span ends."""
        return self.kind == "ttt" and self.settings.audio_mode == "diffusion" and self.settings.ends == "causal"

    @property
    def openers(self) -> tuple[int, int]:
        """Tokens that open a span."""
        return self.layout.begin_of_audio, self.layout.begin_of_quad

    @property
    def ends(self) -> list[int]:
        """Tokens that close a span."""
        layout = self.layout
        return [layout.im_end] if self.kind == "nar" else [layout.end_of_audio_new, layout.end_of_audio_span_last]

    def needed(self, state: SequenceState) -> np.ndarray:
        """Positions whose choice `decode_step` takes.

        The masked ones of an open block; of a draft the one before it and all its own, and under `tidar` those before each mask
        of `blocks_ahead` but the first of a block, where the token is known by then; else the last one.
        """
        start = state.block_start
        if start is None:
            return np.array([len(state.ids) - 1])
        if state.is_drafted:
            ahead = [np.arange(block.start, block.stop - 1) for block in self.blocks_ahead(state)]
            return np.concatenate([np.arange(start - 1, len(state.ids)), *ahead])
        return start + np.flatnonzero(state.ids[start:] == self.layout.mask)

    def draft(self, state: SequenceState) -> np.ndarray:
        """Codes of a draft that `accept_ratio` may keep, one for each of `needed`; -1 where there is none, or an end."""
        if not (self.is_verified and state.is_drafted):
            return np.full(len(self.needed(state)), -1)
        drafted = state.ids[state.block_start :]
        chosen = np.full(len(self.needed(state)), -1)
        chosen[: len(drafted)] = np.where(np.isin(drafted, self.ends), -1, drafted)
        return chosen

    def may_repeat(self, state: SequenceState, needed: np.ndarray) -> np.ndarray:
        """The code that stands before what is written, one for each of `needed`, under `repeats: drawn`; -1 where there is none."""
        settings = self.settings
        is_written = (self.is_causal or self.is_verified) and not state.is_denoised and state.span_start is not None
        if settings.repeats == "likeliest" or settings.code_temperature > 0 or not is_written:
            return np.full(len(needed), -1)
        before = np.full(len(needed), -1)
        own = len(needed) if state.block_start is None else len(state.ids) - state.block_start + 1  # then come drafts
        before[:own] = np.where(needed[:own] >= state.span_start, state.ids[needed[:own]], -1)
        return before

    def blocks_ahead(self, state: SequenceState) -> list[range]:
        """Places of the masks beside a draft, a block for each number of its tokens that may be accepted; empty but under `tidar`.

        Masks begin where the draft first differs, at a token that only this forward will tell. They see what was accepted and
        themselves.
        """
        start = state.block_start
        if not (self.drafts_ahead and start is not None):
            return []
        end = start + _room(_cut(state, start), self)
        places = range(start, len(state.ids) + 1)
        blocks = [range(place, min(place + self.settings.block, end)) for place in places]
        return [block if len(block) > 1 else range(0) for block in blocks]

    def openings(self, state: SequenceState) -> list[SequenceState]:
        """The states behind each opener that may be written next, whose choices the same forward makes; empty but in text under `tidar`.

        A transcript seldom has a span before its last: there they would cost more than they save.
        """
        if not self.drafts_ahead or self.settings.stop_at_last_span or self.phase(state) != "text":
            return []
        opened = [_open_span(_append(state, np.array([opener]), 0), self) for opener in self.openers]
        return [one for one in opened if one.span_start is not None]

    def num_cacheable(self, state: SequenceState) -> int:
        """Tokens whose keys and values the next forward settles: nothing that they see changes any more.

        Reading a block needs what the model says before it, so that position is computed once more.
        """
        reads = (self.is_verified and not self.drafts_ahead) or self.reads_ends
        return self.bidirectional_from(state) - (reads and state.block_start is not None)

    def bidirectional_from(self, state: SequenceState) -> int:
        """First token that sees the masks of the open block, and is computed anew with them."""
        if state.block_start is None or state.span_start is None:
            return len(state.ids)
        if self.drafts_ahead:
            return state.block_start
        return state.block_start if self.settings.block_cache == "block_causal" else state.span_start


@cache
def allowed_ids(layout: TokenLayout, phase: Phase) -> np.ndarray:
    """Ids that may be written: text class in text, codes and ends in a span, both in a response that is one span."""
    if phase == "response":
        return np.flatnonzero(layout.text_allowed | layout.span_allowed)
    ids = np.flatnonzero(layout.text_allowed if phase == "text" else layout.span_allowed)
    return np.setdiff1d(ids, [layout.end_of_audio_new, layout.end_of_audio_span_last]) if phase == "codes" else ids


def uniforms(state: SequenceState, needed: np.ndarray, context: DecodeContext) -> np.ndarray:
    """Random numbers in [0, 1) that sample at the needed positions [n].

    What is written draws by (seed, its place), so that it does not matter in how many forwards; a draft draws the same
    number for a place, and so the same token where it agrees. What is denoised draws by (seed, number of the forward).
    """
    if state.is_denoised and not context.is_verified:
        return _of_forward(state, len(needed))[0]
    places = needed + (not state.is_denoised)
    first, end = int(places.min()), int(places.max()) + 1
    generator = np.random.default_rng([state.seed, 0, 1])
    generator.bit_generator.advance(first)  # type: ignore[attr-defined]  # of PCG64, by one step a number
    return generator.random(end - first)[places - first]


def _of_forward(state: SequenceState, count: int) -> np.ndarray:
    """Numbers of a forward over masks [2, count]: the first row samples tokens, the second orders random remasking."""
    return np.random.default_rng([state.seed, state.num_forwards]).random((2, count))


def decode_step(state: SequenceState, choices: Sequence[Choice], context: DecodeContext) -> SequenceState:
    """The state after one forward, whose choices are those at `context.needed`, then those of each of `context.openings`."""
    choice, *first = choices
    if state.block_start is not None:
        read = _verify if context.is_verified else _read_end
        after = (read if state.is_drafted else _denoise)(state, choice, context)
    elif state.span_start is not None:
        after = _write_code(state, int(choice.ids[0]), context)
    else:
        after = _write_text(state, int(choice.ids[0]), context)
        if first and after.span_start is not None:
            openers = [opened.ids[-1] for opened in context.openings(state)]
            after = _verify(after, first[openers.index(after.ids[-1])], context)
    return replace(after, num_forwards=state.num_forwards + 1)


def _write_text(state: SequenceState, token: int, context: DecodeContext) -> SequenceState:
    """Append a text token; a start of audio opens a span, the end of turn ends the response."""
    layout = context.layout
    state = replace(_append(state, np.array([token]), 0), num_text=state.num_text + 1)
    if token == layout.im_end:
        return replace(state, finish="end_of_turn")
    if token == layout.begin_of_quad and context.settings.stop_at_last_span:
        return replace(state, finish="last_span")
    if token in context.openers:
        return _open_span(state, context)
    return _unless_too_long(state, context)


def _write_code(state: SequenceState, token: int, context: DecodeContext) -> SequenceState:
    """Append a code to an open span that is written one by one, or an end that closes it."""
    state = _append(state, np.array([token]), 0)
    if token in context.ends or not _room(state, context):
        return _close_span(state, len(state.ids), context)
    return state


def _open_span(state: SequenceState, context: DecodeContext) -> SequenceState:
    state = replace(state, span_start=len(state.ids))
    if not _room(state, context):
        return _close_span(state, len(state.ids), context)
    if context.drafts_ahead:
        return replace(state, block_start=len(state.ids), is_drafted=True)
    return state if context.is_causal else _append_block(state, context)


def _append_block(state: SequenceState, context: DecodeContext) -> SequenceState:
    """Add masks to the open span up to the end of its block, as far as may be; drafts are whole blocks from wherever they begin."""
    assert state.span_start is not None
    block = context.settings.block
    done = 0 if context.is_verified else (len(state.ids) - state.span_start) % block
    count = min(block - done, _room(state, context))
    state = replace(state, block_start=len(state.ids), steps_left=context.settings.steps)
    state = _append(state, np.full(count, context.layout.mask), 0)
    return _number_span(state, context.bidirectional_from(state), int(state.span_ids.max(initial=0)) + 1)


def _denoise(state: SequenceState, choice: Choice, context: DecodeContext) -> SequenceState:
    """Commit the most confident of the masked positions; a finished block closes the span or is followed by another."""
    start = state.span_start
    assert start is not None
    # Positions count from the prompt's first token; `chosen` counts among the masked ones, as the choices do.
    masked = context.needed(state)
    chosen = _to_commit(state, choice, context)
    committed = state.ids.copy()
    committed[masked[chosen]] = choice.ids[chosen]
    # Where ends wait (`ends: leftmost`) masks may be left after the last of the steps: then there is always one more.
    state = replace(state, ids=committed, steps_left=max(state.steps_left - 1, 1))

    span = committed[start:]
    ends = np.flatnonzero(np.isin(span, context.ends))
    left = np.flatnonzero(span == context.layout.mask)
    # The first end closes the span as soon as all before it is written. What is still masked behind it would be cut anyway:
    # committed tokens are final, so nothing can come before this end any more, and the forwards for it are saved.
    is_over = len(ends) > 0 and (not len(left) or left[0] > ends[0])
    if len(left) and not is_over:
        return state
    end = start + int(ends[0]) + 1 if is_over else len(committed)
    if (
        context.is_verified
    ):  # a whole draft: causal like text (span 0), so that the next forward can say what AR would write
        return replace(_number_span(_cut(state, end), start, 0), is_drafted=True)
    if context.reads_ends:
        return replace(_number_span(state, context.bidirectional_from(state), 0), is_drafted=True)
    return _append_block(state, context) if not is_over and _room(state, context) else _close_span(state, end, context)


def _to_commit(state: SequenceState, choice: Choice, context: DecodeContext) -> np.ndarray:
    """Which of the choices for masks are committed: the share of this forward and all above the threshold, surest first."""
    settings, count = context.settings, len(choice.ids)
    order = _sureness(state, choice, context)
    if settings.threshold:
        order[choice.probability >= settings.threshold] = np.inf
    if settings.ends != "any":
        # An end waits for all masks before it, so of several only the first can be committed: the others lie behind it.
        ends = np.flatnonzero(np.isin(choice.ids, context.ends))
        if len(ends):
            order[ends[0]] = order[: ends[0] + 1].min()
            order[ends[1:]] = -np.inf
            count -= len(ends) - 1
    sure = int(np.isposinf(order).sum())
    return most_confident(order, min(max(share(len(order), state.steps_left, settings), sure), count))


def _sureness(state: SequenceState, choice: Choice, context: DecodeContext) -> np.ndarray:
    """By what the choices are ranked [n]; the highest are committed first."""
    settings, order = context.settings, choice.confidence.copy()
    if settings.remasking == "random":
        order = _of_forward(state, len(order))[1]
    if settings.position_decay:
        # What is easy is surest: silence at the end of a block, say, to which speech before it then has to lead.
        logarithm = order if settings.remasking == "entropy" else np.log(np.maximum(order, 1e-30))
        order = logarithm - settings.position_decay * context.needed(state)
    return order


def share(masked: int, steps_left: int, settings: DecodeSettings) -> int:
    """Tokens that a forward commits at least, of those still masked: so many that the shares before and after it are
    (s / steps) ** commit_power of the block; with a power of 1 an even split of what is left.
    """
    total, power = settings.steps, settings.commit_power
    before, after = (((total - left) / total) ** power for left in (steps_left, steps_left - 1))
    return max(math.ceil(masked * (after - before) / (1 - before) - 1e-9), 1)


def _verify(state: SequenceState, choice: Choice, context: DecodeContext) -> SequenceState:
    """Write what the model writes one by one (`accept_ratio`): the draft as far as that is the same, and one token more."""
    start = state.block_start
    assert start is not None
    drafted = state.ids[start:]
    written = choice.ids[: len(drafted) + 1]
    before = replace(_cut(state, start), is_drafted=False)
    differs = np.append(written[:-1] != drafted, True) | np.isin(written, context.ends)
    count = min(int(differs.argmax()) + 1, _room(before, context))
    after = _append(before, written[:count], 0)
    if after.ids[-1] in context.ends or not _room(after, context):
        return _close_span(after, len(after.ids), context)
    if not context.drafts_ahead:
        return _append_block(after, context)
    sizes = [max(len(block) - 1, 0) for block in context.blocks_ahead(state)]
    first = len(written) + sum(sizes[: count - 1])
    ahead = choice.ids[first : first + sizes[count - 1]]
    ends = np.flatnonzero(np.isin(ahead, context.ends))
    ahead = ahead[: ends[0] + 1] if len(ends) else ahead
    return replace(_append(after, ahead, 0), block_start=len(after.ids), is_drafted=True)


def _read_end(state: SequenceState, choice: Choice, context: DecodeContext) -> SequenceState:
    """Close the span where the model, writing one by one, would have ended it in this block or right behind; else go on.

    Training never saw masks behind an end, so how many masks there are tells the model that no end is among them.
    """
    start, number = state.block_start, int(state.span_ids.max(initial=0)) + 1
    assert start is not None
    state = replace(state, is_drafted=False)
    ends = np.flatnonzero(np.isin(choice.ids, context.ends))
    if len(ends):
        state = _cut(state, start + int(ends[0]))
        state = _append(state, choice.ids[ends[: min(_room(state, context), 1)]], 0)
    state = _number_span(state, context.bidirectional_from(state), number)
    if len(ends) or not _room(state, context):
        return _close_span(state, len(state.ids), context)
    return _append_block(state, context)


def most_confident(confidence: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of confidence [n]; of equals the earlier."""
    return np.argsort(-confidence, kind="stable")[:count]


def _close_span(state: SequenceState, end: int, context: DecodeContext) -> SequenceState:
    """Cut the open span at `end`, and go on with text; the span of a `nar` model is its response."""
    assert state.span_start is not None
    num_audio = state.num_audio + end - state.span_start
    state = replace(_cut(state, end), span_start=None, block_start=None, steps_left=0, num_audio=num_audio)
    if context.kind == "nar":
        return replace(state, finish="end_of_turn" if end and state.ids[-1] == context.layout.im_end else "span_limit")
    return _unless_too_long(state, context)


def _cut(state: SequenceState, end: int) -> SequenceState:
    return replace(state, ids=state.ids[:end], span_ids=state.span_ids[:end])


def _number_span(state: SequenceState, start: int, number: int) -> SequenceState:
    """Give all tokens from `start` on this number of a span."""
    span_ids = state.span_ids.copy()
    span_ids[start:] = number
    return replace(state, span_ids=span_ids)


def _append(state: SequenceState, ids: np.ndarray, span_id: int) -> SequenceState:
    span_ids = np.full(len(ids), span_id, dtype=np.int32)
    joined = np.concatenate([state.ids, ids.astype(np.int32)])
    return replace(state, ids=joined, span_ids=np.concatenate([state.span_ids, span_ids]))


def _room(state: SequenceState, context: DecodeContext) -> int:
    """Tokens that the open span may still take."""
    assert state.span_start is not None
    length, settings = len(state.ids) - state.span_start, context.settings
    limits = (
        settings.span_limit - length,
        settings.max_codes - state.num_audio - length,
        context.max_length - len(state.ids),
    )
    return max(min(limits), 0)


def _unless_too_long(state: SequenceState, context: DecodeContext) -> SequenceState:
    if state.num_text >= context.settings.max_text:
        return replace(state, finish="max_text")
    if state.num_audio >= context.settings.max_codes:
        return replace(state, finish="max_codes")
    return replace(state, finish="max_length") if len(state.ids) >= context.max_length else state


def prompt_spans(ids: np.ndarray, layout: TokenLayout, heard: bool, spoken: bool) -> np.ndarray:
    """Span numbers of a prompt's audio as training gave them, int32 [n]; 0 where it was causal.

    Whether what the user said (`heard`) and what earlier answers said (`spoken`) is bidirectional: the latter alone has
    its end within its span.
    """
    ends = (layout.end_of_audio_new, layout.end_of_audio_span_last)
    chosen = [(start, end) for start, end in spans(ids, layout) if (spoken if ids[end - 1] in ends else heard)]
    numbers = np.zeros(len(ids), dtype=np.int32)
    for number, (start, end) in enumerate(chosen, start=1):
        numbers[start:end] = number
    return numbers
