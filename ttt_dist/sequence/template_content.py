"""What stands within a turn, as ids: text, recordings that are heard, speech interleaved with its text, and strings of
the released format (docs/method.md#tokens-and-layouts).
"""

import re
from functools import lru_cache

import numpy as np

from ttt_dist.sequence.id_bytes import WIDTH, to_bytes
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout
from ttt_dist.util.errors import UserError

_RUN_OF_CODES = r"(?:<\|audio_(?:0|[1-9][0-9]{0,8})\|>)+"
_PIECE = re.compile("(" + "|".join([_RUN_OF_CODES, *map(re.escape, PIECES.values())]) + ")")
_UNKNOWN_PIECE = re.compile(r"<\|[^\s<>|]+\|>")
_NAME_OF_PIECE = {piece: name for name, piece in PIECES.items()}
_UNSPACED = re.compile("[\u2e80-\u9fff\uff00-\uffef\U00020000-\U0003ffff]")  # Chinese and Japanese write no space


Codes = np.ndarray | bytes
"""A recording: its codes [n], or what `ContentWriter.audio` made of them."""


class ContentWriter:
    """Writes contents for one tokenizer and token layout. All ids are bytes (`id_bytes`)."""

    def __init__(
        self, tokenizer: TextTokenizer, layout: TokenLayout, text_ratio: int, audio_ratio: int, last_span: str
    ) -> None:
        self.tokenizer = tokenizer
        self.layout = layout
        self.text_ratio, self.audio_ratio, self.chunks = text_ratio, audio_ratio, last_span == "chunks"
        self._begin, self._end, self._inner_end, self._quad, self._last_end = (
            to_bytes([layout.special_ids[name]])
            for name in (
                "begin_of_audio",
                "end_of_audio",
                "end_of_audio_new",
                "begin_of_quad",
                "end_of_audio_span_last",
            )
        )
        # System prompts recur, and a text stands in prompt and response.
        self.encode = lru_cache(maxsize=256)(tokenizer.encode_to_bytes)
        twice = tokenizer.decode([*tokenizer.encode("a"), *tokenizer.encode("a")])
        self._puts_spaces = " " in twice.strip()  # sentencepiece models begin every text with a space

    def text(self, text: str) -> bytes:
        """Ids of text, stripped. Raises UserError where none is left."""
        ids = self.encode(text.strip())
        if not ids:
            raise UserError("the text has no tokens: give it a text or leave the utterance out")
        return ids

    def audio(self, codes: Codes) -> bytes:
        """Ids of a recording's codes. Raises UserError where it has none, or one outside the codebook."""
        if not len(codes):
            raise UserError("the audio has no codes: leave the utterance out")
        return codes if isinstance(codes, bytes) else self.layout.code_ids(codes).tobytes()

    def heard(self, audio_ids: bytes | None) -> bytes:
        """A recording in the user's turn. Raises UserError where it is missing."""
        return self._begin + _require(audio_ids) + self._end

    def spoken(self, text_ids: bytes, audio_ids: bytes | None) -> bytes:
        """T_1 A_1 ... T_M A_M: `text_ratio` ids of text and `audio_ratio` codes in turn (docs/method.md#tokens-and-layouts).

        Text that outlasts the codes comes before the last span, which is of the last kind and holds all codes that remain;
        with `chunks` they fill spans of `audio_ratio`, of which only the last is of the last kind.
        """
        audio_ids = _require(audio_ids)
        begin, end = self._begin, self._inner_end
        num_text, num_audio = self.text_ratio * WIDTH, self.audio_ratio * WIDTH
        parts: list[bytes] = []
        text_at = audio_at = 0
        while len(text_ids) - text_at > num_text and len(audio_ids) - audio_at > num_audio:
            text_stop, audio_stop = text_at + num_text, audio_at + num_audio
            parts += text_ids[text_at:text_stop], begin, audio_ids[audio_at:audio_stop], end
            text_at, audio_at = text_stop, audio_stop
        parts.append(text_ids[text_at:])
        while self.chunks and len(audio_ids) - audio_at > num_audio:
            parts += begin, audio_ids[audio_at : audio_at + num_audio], end
            audio_at += num_audio
        parts += self._quad, audio_ids[audio_at:], self._last_end
        return b"".join(parts)

    def sentence(self, text: str, audio_ids: bytes | None, is_first: bool, is_last: bool) -> bytes:
        """A sentence of a document and its speech. A space goes before it where the script, and not the tokenizer, has one."""
        spaced = not is_first and not self._puts_spaces and not _UNSPACED.match(text)
        begin, end = (self._quad, self._last_end) if is_last else (self._begin, self._inner_end)
        return self.encode(" " + text if spaced else text) + begin + _require(audio_ids) + end

    def parse(self, content: str) -> bytes:
        """Ids of a string of the released format: codes and delimiters by name, the rest by the text tokenizer.

        Raises UserError on a piece such as <|name|> that the format does not have, and on a code outside the codebook.
        """
        parts: list[bytes] = []
        for index, piece in enumerate(_PIECE.split(content)):
            if index % 2 == 0:
                if piece:
                    parts.append(self._plain(piece))
            elif piece in _NAME_OF_PIECE:
                parts.append(to_bytes([self.layout.special_ids[_NAME_OF_PIECE[piece]]]))
            else:
                numbers = piece[len("<|audio_") : -len("|>")].replace("|><|audio_", " ")
                parts.append(self.layout.code_ids(np.fromstring(numbers, dtype=np.int64, sep=" ")).tobytes())
        return b"".join(parts)

    def _plain(self, text: str) -> bytes:
        unknown = _UNKNOWN_PIECE.search(text) if "<|" in text else None
        if unknown:
            raise UserError(f"{unknown.group()} is no piece of the released format: correct or remove it")
        return self.encode(text)


def _require(audio_ids: bytes | None) -> bytes:
    if audio_ids is None:
        raise UserError("has no audio: add the recording, or leave the template out")
    return audio_ids
