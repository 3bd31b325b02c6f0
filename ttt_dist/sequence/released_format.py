"""Strings of the released format: text with `<|audio_N|>` codes and delimiters in it, as ids."""

import re
from collections.abc import Callable

import numpy as np

from ttt_dist.sequence.id_bytes import to_bytes
from ttt_dist.sequence.tokens import PIECES, TokenLayout
from ttt_dist.util.errors import UserError

_RUN_OF_CODES = r"(?:<\|audio_(?:0|[1-9][0-9]{0,8})\|>)+"
_PIECE = re.compile("(" + "|".join([_RUN_OF_CODES, *map(re.escape, PIECES.values())]) + ")")
_UNKNOWN_PIECE = re.compile(r"<\|[^\s<>|]+\|>")
_NAME_OF_PIECE = {piece: name for name, piece in PIECES.items()}


def parse(content: str, layout: TokenLayout, encode: Callable[[str], bytes]) -> bytes:
    """Ids (as bytes, `id_bytes`): codes and delimiters by name, the rest by `encode`, the text tokenizer.

    Raises UserError on a piece such as <|name|> that the format does not have, and on a code outside the codebook.
    """
    parts: list[bytes] = []
    for index, piece in enumerate(_PIECE.split(content)):
        if index % 2 == 0:
            if piece:
                parts.append(encode(_plain(piece)))
        elif piece in _NAME_OF_PIECE:
            parts.append(to_bytes([layout.special_ids[_NAME_OF_PIECE[piece]]]))
        else:
            numbers = piece[len("<|audio_") : -len("|>")].replace("|><|audio_", " ")
            parts.append(layout.code_ids(np.fromstring(numbers, dtype=np.int64, sep=" ")).tobytes())
    return b"".join(parts)


def _plain(text: str) -> str:
    unknown = _UNKNOWN_PIECE.search(text) if "<|" in text else None
    if unknown:
        raise UserError(f"{unknown.group()} is no piece of the released format: correct or remove it")
    return text
