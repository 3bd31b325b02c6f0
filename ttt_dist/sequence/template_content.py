"""What stands within a turn, as ids: text, recordings that are heard, speech interleaved with its text, and strings of
the released format (method: tokens, samples).
"""

import re
from functools import lru_cache
from typing import Any

import numpy as np

from ttt_dist.errors import UserError
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout

_RUN_OF_CODES = r"(?:<\|audio_(?:0|[1-9][0-9]{0,8})\|>)+"
_PIECE = re.compile("(" + "|".join([_RUN_OF_CODES, *map(re.escape, PIECES.values())]) + ")")
_UNKNOWN_PIECE = re.compile(r"<\|[^\s<>|]+\|>")
_NAME_OF_PIECE = {piece: name for name, piece in PIECES.items()}
_UNSPACED = re.compile("[\u2e80-\u9fff\uff00-\uffef\U00020000-\U0003ffff]")  # Chinese and Japanese write no space


class ContentWriter:
    """Writes contents for one tokenizer and token layout. All ids are int32 [n]."""

    def __init__(
        self, tokenizer: TextTokenizer, layout: TokenLayout, text_ratio: int, audio_ratio: int, last_span: str
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self._quad, self._last_end = layout.begin_of_quad, layout.end_of_audio_span_last
        self.text_ratio, self.audio_ratio, self.chunks = text_ratio, audio_ratio, last_span == "chunks"
        self.encode = lru_cache(maxsize=256)(self._encode)  # system prompts recur; a text stands in prompt and response
        twice = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("a")])
        self._puts_spaces = " " in twice.strip()  # sentencepiece models begin every text with a space

    def text(self, text: str) -> np.ndarray:
        """Ids of text, stripped. Raises UserError where none is left."""
        ids = self.encode(text.strip())
        if not len(ids):
            raise UserError("the text has no tokens: give it a text or leave the utterance out")
        return ids

    def audio(self, codes: np.ndarray) -> np.ndarray:
        """Ids of a recording's codes. Raises UserError where it has none, or one outside the codebook."""
        if not len(codes):
            raise UserError("the audio has no codes: leave the utterance out")
        return self.layout.code_ids(codes)

    def heard(self, audio_ids: np.ndarray | None) -> np.ndarray:
        """A recording in the user's turn. Raises UserError where it is missing."""
        return self._span(_require(audio_ids), self.layout.begin_of_audio, self.layout.end_of_audio)

    def spoken(self, text_ids: np.ndarray, audio_ids: np.ndarray | None) -> np.ndarray:
        """T_1 A_1 ... T_M A_M: `text_ratio` ids of text and `audio_ratio` codes in turn (method: tokens).

        Text that outlasts the codes comes before the last span, which is of the last kind and holds all codes that remain;
        with `chunks` they fill spans of `audio_ratio`, of which only the last is of the last kind.
        """
        audio_ids = _require(audio_ids)
        num_text, num_audio = self.text_ratio, self.audio_ratio
        rounds = max(min((len(text_ids) - 1) // num_text, (len(audio_ids) - 1) // num_audio), 0)
        chunks = (len(audio_ids) - 1) // num_audio - rounds if self.chunks else 0
        cut_text, cut_audio = rounds * num_text, (rounds + chunks) * num_audio
        width = num_text + num_audio + 2
        out = np.empty(len(text_ids) + len(audio_ids) + 2 * (rounds + chunks + 1), dtype=np.int32)
        if rounds:
            rows = out[: rounds * width].reshape(rounds, width)
            rows[:, :num_text] = text_ids[:cut_text].reshape(rounds, num_text)
            self._fill_spans(rows[:, num_text:], audio_ids[: rounds * num_audio])
        start = rounds * width + len(text_ids) - cut_text
        out[rounds * width : start] = text_ids[cut_text:]
        if chunks:
            rows = out[start : start + chunks * (num_audio + 2)].reshape(chunks, num_audio + 2)
            self._fill_spans(rows, audio_ids[rounds * num_audio : cut_audio])
        last = len(audio_ids) - cut_audio
        out[-last - 2], out[-last - 1 : -1], out[-1] = self._quad, audio_ids[cut_audio:], self._last_end
        return out

    def sentence(self, text: str, audio_ids: np.ndarray | None, is_first: bool, is_last: bool) -> np.ndarray:
        """A sentence of a document and its speech. A space goes before it where the script, and not the tokenizer, has one."""
        spaced = not is_first and not self._puts_spaces and not _UNSPACED.match(text)
        ends = (self._quad, self._last_end) if is_last else (self.layout.begin_of_audio, self.layout.end_of_audio_new)
        span = self._span(_require(audio_ids), *ends)
        return np.concatenate([self.encode(" " + text if spaced else text), span])

    def parse(self, content: str) -> np.ndarray:
        """Ids of a string of the released format: codes and delimiters by name, the rest by the text tokenizer.

        Raises UserError on a piece such as <|name|> that the format does not have, and on a code outside the codebook.
        """
        parts: list[Any] = [[]]
        for index, piece in enumerate(_PIECE.split(content)):
            if index % 2 == 0:
                if piece:
                    parts.append(self._plain(piece))
            elif piece in _NAME_OF_PIECE:
                parts.append([self.layout.special_ids[_NAME_OF_PIECE[piece]]])
            else:
                numbers = piece[len("<|audio_") : -len("|>")].replace("|><|audio_", " ")
                parts.append(self.layout.code_ids(np.fromstring(numbers, dtype=np.int64, sep=" ")))
        return np.concatenate(parts, dtype=np.int32, casting="unsafe")

    def _plain(self, text: str) -> np.ndarray:
        unknown = _UNKNOWN_PIECE.search(text) if "<|" in text else None
        if unknown:
            raise UserError(f"{unknown.group()} is no piece of the released format: correct or remove it")
        return self.encode(text)

    def _span(self, audio_ids: np.ndarray, begin: int, end: int) -> np.ndarray:
        out = np.empty(len(audio_ids) + 2, dtype=np.int32)
        out[0], out[1:-1], out[-1] = begin, audio_ids, end
        return out

    def _fill_spans(self, rows: np.ndarray, audio_ids: np.ndarray) -> None:
        """Write spans of the inner kind into rows [n, audio_ratio + 2]."""
        rows[:, 0], rows[:, -1] = self.layout.begin_of_audio, self.layout.end_of_audio_new
        rows[:, 1:-1] = audio_ids.reshape(len(rows), -1)

    def _encode(self, text: str) -> np.ndarray:
        ids = np.array(self.tokenizer.encode(text), dtype=np.int32)
        ids.flags.writeable = False  # it is handed out again
        return ids


def _require(audio_ids: np.ndarray | None) -> np.ndarray:
    if audio_ids is None:
        raise UserError("has no audio: add the recording, or leave the template out")
    return audio_ids
