"""Byte-level BPE word by word: words recur, and looking one up is many times faster than merging it anew.

Exact for tokenizers whose pre-tokenizer never matches across a space between two words: no match of the patterns below
holds a space but as its first character, or white space alone. So a text may be cut at every space between two characters
that are not white space, and is tokenised as the words between them are, each with the space before it. Other white space
may stand within a word, a line's end for one. A text with white space at a cut, and one whose words are too long to recur
(Chinese clauses), goes to the tokenizer whole.
"""

import json
from collections.abc import Callable
from typing import Any

MOST_WORDS = 1 << 18  # of a kind, some 40 MB; then the cache begins anew
LONGEST_WORD = 32
PATTERNS = (  # as tokenizer.json of Qwen2 and later, and of Llama 3 and later, states them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


class _Uncut(Exception):
    """The text cannot be cut here, or is not worth it."""


class _Words(dict[str, bytes]):
    """The ids of words, as bytes; `before` is what stands before each in its text."""

    def __init__(self, encode: Callable[[str], bytes], before: str) -> None:
        super().__init__()
        self._encode, self._before = encode, before

    def __missing__(self, word: str) -> bytes:
        if not word or word[0].isspace() or word[-1].isspace() or len(word) > LONGEST_WORD:
            raise _Uncut
        if len(self) >= MOST_WORDS:
            self.clear()
        ids = self[word] = self._encode(self._before + word)
        return ids


class WordCache:
    """Ids of texts by a tokenizer's `encode`, which is asked once for each word."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self._encode = encode
        self._first, self._later = _Words(encode, ""), _Words(encode, " ")

    def encode(self, text: str) -> bytes:
        """Ids of a text as bytes (`id_bytes`), the same as the tokenizer's own."""
        words = text.split(" ")
        if len(words) == 1:
            return self._encode(text)
        try:
            return self._first[words.pop(0)] + b"".join(map(self._later.__getitem__, words))
        except _Uncut:
            return self._encode(text)


def is_exact_for(description: str) -> bool:
    """Whether the tokenizer that tokenizer.json describes may be used word by word."""
    try:
        return _is_known(json.loads(description))
    except (
        AttributeError,
        LookupError,
        TypeError,
    ):  # the library also takes lists, by position, in the place of objects
        return False


def _is_known(values: dict[str, Any]) -> bool:
    splits = values.get("pre_tokenizer") or {}
    steps = splits.get("pretokenizers", [splits])
    normalizer = None if values.get("normalizer") is None else values["normalizer"].get("type")
    return (
        values["model"].get("type") == "BPE"
        and normalizer in (None, "NFC")
        and steps[-1].get("type") == "ByteLevel"
        and not steps[-1].get("add_prefix_space")
        and not any(_crosses_spaces(token) for token in values.get("added_tokens") or [])
        and (_splits_as_known(steps[0]) if len(steps) == 2 else len(steps) == 1 and steps[0].get("use_regex", True))
    )


def _crosses_spaces(token: dict[str, Any]) -> bool:
    """Whether an added token that plain text may hold takes a space behind it, or has one in it."""
    return not token.get("special") and (token.get("rstrip", False) or " " in token["content"])


def _splits_as_known(step: dict[str, Any]) -> bool:
    pattern = (step.get("pattern") or {}).get("Regex")
    return step.get("type") == "Split" and step.get("behavior") == "Isolated" and pattern in PATTERNS
