"""A sentencepiece model file as a text tokenizer."""

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from ttt_dist.sequence.tokenizer_interface import TextTokenizer, in_one_line, is_plain, read_file, require_ids, untaken
from ttt_dist.util.errors import UserError

SPACE = "\u2581"


class SentencePieceTokenizer(TextTokenizer):
    """A sentencepiece model file.

    Its control symbols are special, and those user-defined ones that are no text; sentencepiece finds the latter in any
    text, so another model in which they are control symbols encodes.
    """

    def __init__(self, path: Path) -> None:
        content = read_file(path)
        proto = _parse(content, path)
        kinds = proto.SentencePiece
        markup = [piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED and not is_plain(piece.piece)]
        self._special = {
            piece.piece: number
            for number, piece in enumerate(proto.pieces)
            if piece.type == kinds.CONTROL or (piece.type == kinds.USER_DEFINED and not is_plain(piece.piece))
        }
        self._model = self._plain = _processor(content, path)
        for piece in markup:
            piece.type = kinds.CONTROL
        if markup:
            self._plain = _processor(proto.SerializeToString(), path)
        self.name = path.resolve().parent.name
        self.hash = sha256(content).hexdigest()
        self.size = require_ids(path, self._model.vocab_size())
        self.files = [path]

    @property
    def text_size(self) -> int:
        special = set(self._special.values())
        return max((number for number in range(self.size) if number not in special), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._plain.encode(text))
        except (RuntimeError, UnicodeEncodeError) as error:
            raise untaken(self.name, text, error) from error

    def encode_markup(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([int(i) for i in ids]))

    def special_id(self, piece: str) -> int | None:
        return self._special.get(piece)

    def to_tokenizer_json(self) -> dict[str, Any] | None:
        return tokenizer_json_of(_parse(read_file(self.files[0]), self.files[0]))


_RANKS = re.compile(
    rb"[A-Za-z0-9+/]+=* \d+\r?\n"
)  # the first line of tiktoken's files: a piece in base 64, and its rank


def _parse(content: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as schema

    try:
        proto = schema.ModelProto.FromString(content)  # type: ignore[attr-defined]  # made when it is imported
        if not all(isinstance(piece.piece, str) for piece in proto.pieces):
            raise ValueError("a piece is not UTF-8")
    except (DecodeError, ValueError, RecursionError) as error:
        raise _no_model(path, error) from error
    return proto


def _processor(content: bytes, path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError, ValueError) as error:
        if _RANKS.match(content):
            raise UserError(
                f"{path}: is tiktoken's, which is not read; name the model's folder in transformers' form, with its tokenizer.json"
            ) from None
        raise _no_model(path, error) from error


def _no_model(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a sentencepiece model ({in_one_line(error)}): train or copy it again")


def tokenizer_json_of(proto: Any) -> dict[str, Any] | None:
    """A sentencepiece model as the contents of a tokenizer.json, or None for a kind that is not written so.

    BPE with byte fallback and without a table of normalisation, as `train_sentencepiece` makes it. sentencepiece merges the
    neighbours whose union scores highest; in a tokenizer.json those are the pairs, best union first. User-defined symbols
    of one character stand alone: nothing merges with them, and the text is split at them.
    """
    spec, kinds = proto.normalizer_spec, proto.SentencePiece
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    alone = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED and is_plain(piece.piece)]
    usual = (
        proto.trainer_spec.model_type == proto.trainer_spec.BPE
        and proto.trainer_spec.byte_fallback
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and not (spec.precompiled_charsmap or spec.remove_extra_whitespaces)
        and spec.escape_whitespaces
        and not proto.denormalizer_spec.precompiled_charsmap
        and len(pieces) == len(proto.pieces)
        and all(len(piece) == 1 for piece in alone)
        and not any(piece.type == kinds.UNUSED for piece in proto.pieces)
    )
    if not usual:
        return None
    unknown = next((piece.piece for piece in proto.pieces if piece.type == kinds.UNKNOWN), None)
    special = [
        piece.piece
        for piece in proto.pieces
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN)
        or (piece.type == kinds.USER_DEFINED and not is_plain(piece.piece))
    ]
    prefix = spec.add_dummy_prefix
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(piece, pieces[piece]) for piece in special],
        "normalizer": _sequence(
            "normalizers",
            [{"type": "Prepend", "prepend": SPACE}] * prefix,
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ),
        "pre_tokenizer": _sequence("pretokenizers", [_split(piece) for piece in alone]) if alone else None,
        "post_processor": None,
        "decoder": _sequence(
            "decoders",
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
        ),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": pieces,
            "merges": _merges(proto),
        },
    }


def _merges(proto: Any) -> list[list[str]]:
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == proto.SentencePiece.NORMAL}
    ranked = sorted(normal, key=lambda piece: -normal[piece])  # stable: equal scores by id
    return [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _added(piece: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "content": piece,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _split(piece: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"String": piece}, "behavior": "Isolated", "invert": False}


def _sequence(name: str, *steps: Any) -> dict[str, Any]:
    """Steps one after the other; a list among them stands for its items."""
    flat = [one for step in steps for one in (step if isinstance(step, list) else [step])]
    return {"type": "Sequence", name: flat}
