"""The token layout: which id is text, an audio code, the mask, or a delimiter (`TokenLayout`).

A layout travels with every shard set, checkpoint and exported model. Classes come from an explicit membership table,
never from a comparison of ids: the order of a vocabulary is a convention of one release, not a rule.
"""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

MAX_IDS = 2**26  # of a vocabulary: far above any, and few enough for a table of all of them
# Delimiters that belong to the text class: ordinary autoregressive targets, or parts of the prompt.
TEXT_SPECIALS = ("pad", "im_start", "im_end", "begin_of_audio", "end_of_audio", "begin_of_quad")
# Members of the audio class besides the codes.
AUDIO_SPECIALS = ("mask", "end_of_audio_new", "end_of_audio_span_last")
# How the specials are written in text (names of the released vocabulary).
PIECES = {
    "pad": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "begin_of_audio": "<|begin_of_audio|>",
    "end_of_audio": "<|end_of_audio|>",
    "begin_of_quad": "<|begin_of_quad|>",
    "mask": "<|mask_token|>",
    "end_of_audio_new": "<|end_of_audio_new|>",
    "end_of_audio_span_last": "<|end_of_audio_span_last|>",
}


class Vocabulary(Protocol):
    """What layouts need to know of a text tokenizer. `size` is its largest id, and one."""

    name: str
    hash: str
    size: int

    @property
    def text_size(self) -> int:
        """The largest id that plain text may become, and one."""
        ...

    def special_id(self, piece: str) -> int | None:
        """Id of `piece` where the tokenizer already has it as one special token."""
        ...


MOST_PADDING = 2**16  # rows beyond twice the vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Ids of everything that is not plain text. `vocab_size` counts real entries, `padded_vocab_size` rows of the model."""

    tokenizer: str
    tokenizer_hash: str
    num_text_tokens: int
    special_ids: dict[str, int]
    first_code: int
    num_codes: int
    vocab_size: int
    padded_vocab_size: int

    def __post_init__(self) -> None:
        missing = [name for name in (*TEXT_SPECIALS, *AUDIO_SPECIALS) if name not in self.special_ids]
        if missing:
            raise UserError(f"token layout lacks special_ids.{missing[0]}: add its id")
        ids = list(self.special_ids.values())
        if len(set(ids)) != len(ids):
            raise UserError("token layout gives one id to two special tokens: make special_ids distinct")
        codes = range(self.first_code, self.first_code + self.num_codes)
        if self.num_codes < 1 or codes.stop > self.vocab_size or any(not 0 <= i < self.vocab_size for i in ids):
            raise UserError(
                f"token layout has ids outside vocab_size {self.vocab_size}: correct first_code, num_codes or special_ids"
            )
        if any(i in codes for i in ids):
            raise UserError("token layout puts a special token among the audio codes: move first_code or special_ids")
        if self.padded_vocab_size < self.vocab_size:
            raise UserError(
                f"token layout: padded_vocab_size {self.padded_vocab_size} is below vocab_size {self.vocab_size}"
            )
        if self.padded_vocab_size > 2 * self.vocab_size + MOST_PADDING:  # gigabytes of zeros, and no model has them
            raise UserError(
                f"token layout: padded_vocab_size {self.padded_vocab_size} is padding for the most part, of vocab_size "
                f"{self.vocab_size}; correct it"
            )

    def __hash__(self) -> int:
        return hash((self.tokenizer_hash, self.first_code, self.num_codes, self.padded_vocab_size))

    @property
    def pad(self) -> int:
        return self.special_ids["pad"]

    @property
    def im_start(self) -> int:
        return self.special_ids["im_start"]

    @property
    def im_end(self) -> int:
        return self.special_ids["im_end"]

    @property
    def begin_of_audio(self) -> int:
        return self.special_ids["begin_of_audio"]

    @property
    def end_of_audio(self) -> int:
        """Closes audio in a prompt; text class, unlike the two ends that a response uses."""
        return self.special_ids["end_of_audio"]

    @property
    def begin_of_quad(self) -> int:
        return self.special_ids["begin_of_quad"]

    @property
    def mask(self) -> int:
        return self.special_ids["mask"]

    @property
    def end_of_audio_new(self) -> int:
        return self.special_ids["end_of_audio_new"]

    @property
    def end_of_audio_span_last(self) -> int:
        return self.special_ids["end_of_audio_span_last"]

    @cached_property
    def is_audio(self) -> np.ndarray:
        """Membership table of the audio class, bool [padded_vocab_size]."""
        table = np.zeros(self.padded_vocab_size, dtype=bool)
        table[self.first_code : self.first_code + self.num_codes] = True
        table[[self.special_ids[name] for name in AUDIO_SPECIALS]] = True
        return table

    @cached_property
    def text_allowed(self) -> np.ndarray:
        """What autoregressive text may emit, bool [padded_vocab_size]: text class without pad and the prompt's delimiters."""
        table = ~self.is_audio
        table[self.vocab_size :] = False
        table[[self.pad, self.im_start, self.end_of_audio]] = False
        return table

    @cached_property
    def span_allowed(self) -> np.ndarray:
        """What a span may commit, bool [padded_vocab_size]: codes and the two ends of audio, never the mask."""
        table = self.is_audio.copy()
        table[self.mask] = False
        return table

    def code_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids (int32) of codec codes. Raises UserError on a code outside the codebook."""
        codes = np.ascontiguousarray(codes, dtype=np.int32)
        if codes.size and codes.view(np.uint32).max() >= self.num_codes:  # a negative one becomes a large one
            raise UserError(
                f"audio code outside 0..{self.num_codes - 1}: the codec's codebook is larger than the token layout's"
            )
        return codes + np.int32(self.first_code)

    def codes_of(self, ids: np.ndarray) -> np.ndarray:
        """Codec codes among token ids, in order; every other token is left out."""
        ids = np.asarray(ids)
        codes = ids - self.first_code
        return codes[(codes >= 0) & (codes < self.num_codes)].astype(np.int32)

    @cached_property
    def pieces(self) -> dict[int, str]:
        """How special tokens and codes are written in text, by id."""
        special = {number: PIECES[name] for name, number in self.special_ids.items()}
        return special | {self.first_code + code: f"<|audio_{code}|>" for code in range(self.num_codes)}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "TokenLayout":
        """Rebuild a layout read from `where`. Raises UserError naming a missing key."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise UserError(f"{where}: token layout lacks '{missing[0]}': write the file again with this version")
        for name in names:
            _require_kind(name, values[name], where)
        try:
            return cls(**{name: values[name] for name in names})
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf8")

    @classmethod
    def load(cls, path: str | Path) -> "TokenLayout":
        remedy = "export the model or write the shards again"
        try:
            values = read_object(Path(path), remedy)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no readable token layout ({error}): {remedy}") from error
        return cls.from_dict(values, str(path))

    def require_same(self, other: "TokenLayout", where: str) -> None:
        """Refuse a layout that differs, naming both values of the first difference. Names of tokenizers may differ."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "tokenizer" and mine != theirs:
                raise UserError(
                    f"{where}: token layout differs in {field.name}: {theirs} there, {mine} here; use data and weights of one layout"
                )


def _require_kind(name: str, value: Any, where: str) -> None:
    """Raise UserError where a value read for the field `name` is none of its kind: tables of all ids are made from them."""
    if name in ("tokenizer", "tokenizer_hash"):
        wanted, is_right = "text", isinstance(value, str)
    elif name == "special_ids":
        wanted, is_right = "ids by name", isinstance(value, dict) and all(map(_is_id, value.values()))
    else:
        wanted, is_right = f"a whole number of 0 to {MAX_IDS:,}", _is_id(value)
    if not is_right:
        raise UserError(f"{where}: token layout has {name} {value!r}, not {wanted}: write the file again")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_IDS


def extend(
    tokenizer: Vocabulary, codebook_size: int, multiple: int = 128, end_of_turn: int | None = None
) -> TokenLayout:
    """Layout that appends the missing special tokens, the codes and the audio delimiters to any text tokenizer.

    Order: text, missing text specials, codes, mask, end_of_audio_new, end_of_audio_span_last (the released order).
    `multiple` pads the number of embedding rows. `end_of_turn` is the `im_end` of a tokenizer that ends turns with a token
    of its own.
    """
    special_ids: dict[str, int] = {}
    next_id = tokenizer.size
    for name in TEXT_SPECIALS:
        known = tokenizer.special_id(PIECES[name])
        if end_of_turn is not None and (name == "im_end" or known == end_of_turn):
            known = end_of_turn if name == "im_end" else None
        special_ids[name] = next_id if known is None else known
        next_id += known is None
    first_code = next_id
    next_id += codebook_size
    for name in AUDIO_SPECIALS:
        special_ids[name] = next_id
        next_id += 1
    padded = -(-next_id // multiple) * multiple
    return TokenLayout(
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        num_text_tokens=tokenizer.size,
        special_ids=special_ids,
        first_code=first_code,
        num_codes=codebook_size,
        vocab_size=next_id,
        padded_vocab_size=padded,
    )


def released(tokenizer: str = "Qwen2.5", tokenizer_hash: str = "") -> TokenLayout:
    """The released TtT vocabulary of 168,072 entries on the Qwen2.5 tokenizer (arXiv 2509.20072, released code)."""
    special_ids = {
        "pad": 151643,
        "im_start": 151644,
        "im_end": 151645,
        "begin_of_audio": 151674,
        "end_of_audio": 151675,
        "begin_of_quad": 151676,
        "mask": 168069,
        "end_of_audio_new": 168070,
        "end_of_audio_span_last": 168071,
    }
    return TokenLayout(
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash,
        num_text_tokens=151665,
        special_ids=special_ids,
        first_code=151685,
        num_codes=16384,
        vocab_size=168072,
        padded_vocab_size=168192,
    )


def require_room(tokenizer: Vocabulary, layout: TokenLayout) -> None:
    """Raise UserError where plain text could get ids that `layout`, the released vocabulary, keeps for other things."""
    if tokenizer.text_size > layout.num_text_tokens:
        raise UserError(
            f"tokenizer {tokenizer.name}: its text needs ids for {tokenizer.text_size:,} entries, the released vocabulary "
            f"has room for {layout.num_text_tokens:,}; take Qwen2.5's, or a layout of the tokenizer's own"
        )
