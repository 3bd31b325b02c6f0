"""Byte-level BPE word by word: words recur, and looking one up is many times faster than merging it anew.

Exact for tokenizers whose pre-tokenizer never matches across a space between two words: no match of the patterns below
holds a space but as its first character, or white space alone. So a text of single spaces is tokenised as its words are,
each with the space before it; any other text goes to the tokenizer whole.
"""

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

MOST_WORDS = 1 << 18  # some 50 MB; then the cache begins anew
PATTERNS = (  # as tokenizer.json of Qwen2 and later, and of Llama 3 and later, states them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


class WordCache(dict[str, list[int]]):
    """Words, each with the space before it, and their ids; `encode` gives the ids of any text [n]."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= MOST_WORDS:
            self.clear()
        ids = self[word] = self._encode(word)
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text, the same as the tokenizer's own."""
        first, *words = text.split(" ")
        if not words or [first, *words] != text.split():
            return self._encode(text)
        return list(chain(self[first], *[self[f" {word}"] for word in words]))


def is_exact_for(description: str) -> bool:
    """Whether the tokenizer that tokenizer.json describes may be used word by word."""
    values = json.loads(description)
    splits = values.get("pre_tokenizer") or {}
    steps = splits.get("pretokenizers", [splits])
    normalizer = (values.get("normalizer") or {}).get("type")
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
