"""What decoding tells while it goes on, so that speech can start before the response ends."""

from dataclasses import dataclass

import numpy as np

from ttt_dist.inference.sequence_state import Finish, SequenceState
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer gives for a part of a character


@dataclass(frozen=True, kw_only=True)
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
    """Forward passes that it took part in; under guidance a span's count twice."""
    num_audio_forwards: int
    """Those of them that spans took: that began within one, or under `tidar` wrote its opener and the first draft behind it."""

    @property
    def codes(self) -> np.ndarray:
        """The codes of all spans, one after the other."""
        return np.concatenate([np.zeros(0, dtype=np.int32), *self.spans])


@dataclass(frozen=True)
class TextPiece:
    """Text that can newly be read."""

    text: str


@dataclass(frozen=True)
class SpanDone:
    """A finished span's codec codes, int32 [n], n > 0."""

    codes: np.ndarray


@dataclass(frozen=True)
class Finished:
    """The response is whole."""

    result: Result


Event = TextPiece | SpanDone | Finished


class IncrementalDetokenizer:
    """Reads a response as it grows: text as far as its characters are complete, spans when they are closed."""

    def __init__(self, tokenizer: TextTokenizer, layout: TokenLayout) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.text_ids: list[int] = []
        self.spans: list[np.ndarray] = []
        self._told = 0

    def read(self, ids: np.ndarray) -> list[Event]:
        """The events of newly settled tokens [n]; a span is not cut by the border."""
        events: list[Event] = []
        start = 0
        for span_start, span_end in [*spans(ids, self.layout), (len(ids), len(ids))]:
            events += self._text(ids[start:span_start])
            codes = self.layout.codes_of(ids[span_start:span_end])
            if len(codes):
                self.spans.append(codes)
                events.append(SpanDone(codes))
            start = span_end
        return events

    def _text(self, ids: np.ndarray) -> list[Event]:
        specials = self.layout.special_ids.values()
        new = [int(token) for token in ids if token < self.layout.num_text_tokens and token not in specials]
        self.text_ids += new
        return self._tell(self.tokenizer.decode(self.text_ids)) if new else []

    def _tell(self, text: str, is_last: bool = False) -> list[Event]:
        if text.endswith(UNFINISHED) and not is_last:
            return []
        piece, self._told = text[self._told :], max(self._told, len(text))
        return [TextPiece(piece)] if piece else []

    def end(self, state: SequenceState, num_forwards: int, num_audio_forwards: int) -> list[Event]:
        """What is left to tell of a finished state, and the result."""
        assert state.finish is not None
        text = self.tokenizer.decode(self.text_ids)
        ids, text_ids = state.ids[state.num_prompt :], np.array(self.text_ids, dtype=np.int32)
        result = Result(
            ids=ids,
            text=text,
            text_ids=text_ids,
            spans=self.spans,
            finish=state.finish,
            num_forwards=num_forwards,
            num_audio_forwards=num_audio_forwards,
        )
        return [*self._tell(text, is_last=True), Finished(result)]
