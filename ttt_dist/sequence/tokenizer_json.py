"""The contents of a tokenizer.json: reading it, and what is changed in it before the `tokenizers` library gets it.

The library decides ids by this file alone. `transformers` picks a class by `tokenizer_class` and by a config.json that
happens to lie beside it, and some classes put their own normalizer and pre-tokenizer in the place of the file's.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.sequence.tokenizer_interface import in_one_line, is_plain, read_file
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:  # commands begin without it
    from tokenizers import Tokenizer

Json = dict[str, Any]


def read_object(path: Path) -> Json:
    """The JSON object of a file. Raises UserError that says what it is instead."""
    try:
        values = json.loads(read_file(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); copy it again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is {type(values).__name__}, not an object; copy it again")
    return values


def build(values: Json) -> Tokenizer:
    """The tokenizer of these contents. Raises ValueError where they are none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(values))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ValueError(str(error)) from None


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What goes wrong with the contents of `path`, which were not looked at key by key, as a UserError."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        told = in_one_line(error)
        raise UserError(f"{path}: is no tokenizer of the tokenizers library ({told}); copy or save it again") from None


def read_tokenizer(path: Path) -> tuple[Json, Tokenizer]:
    """A tokenizer.json and its tokenizer, every added token at the id that the file states. Raises UserError."""
    values = read_object(path) | {"truncation": None, "padding": None}
    with refusing(path):
        backend = build(values)
        known = values["model"]["vocab"]
        known = set(known) if isinstance(known, dict) else {content for content, _ in known}
        tokens = values.get("added_tokens") or []
        stated = {token["content"]: int(token["id"]) for token in tokens if token["content"] not in known}
        if any(backend.token_to_id(content) != number for content, number in stated.items()):
            place(values, stated)  # the library counts on from the number of entries, whatever the file says
            backend = build(values)
        for content, number in stated.items():
            if backend.token_to_id(content) != number:
                raise ValueError(f"id {number} of {content!r} belongs to another entry")
    return values, backend


def special_tokens(values: Json, entries: Mapping[str, int]) -> dict[str, int]:
    """Those of the ids `entries` that belong to added tokens that are no text: flagged special, or markup by their looks."""
    tokens = values.get("added_tokens") or []
    return {
        token["content"]: entries[token["content"]]
        for token in tokens
        if token["content"] in entries and (token.get("special") or not is_plain(token["content"]))
    }


def place(values: Json, entries: Mapping[str, int]) -> None:
    """Put entries into the model's vocabulary, where their ids hold even if those between are unused."""
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, dict):
        taken = set(vocabulary.values())
        vocabulary.update((content, number) for content, number in entries.items() if number not in taken)
        return
    by_id = {number: content for content, number in entries.items()}  # of Unigram, a list: a place is an id
    lowest = min((score for _, score in vocabulary), default=0.0)
    for number in range(len(vocabulary), max(by_id, default=-1) + 1):
        vocabulary.append([by_id.get(number, f"<|unused_{number}|>"), lowest])


def for_plain_text(values: Json, special: Mapping[str, int]) -> Json:
    """These contents with `special` out of reach of any text, and without the dropout of merges.

    All added tokens of `special` are flagged so, and are skipped by `encode_special_tokens`. Where the model itself can
    arrive at one, as an entry or by merges, the entry gets a name that nobody can write.
    """
    model = dict(values["model"])
    tokens = [
        token | {"special": True} if token["content"] in special else token
        for token in values.get("added_tokens") or []
    ]
    if "dropout" in model:
        model["dropout"] = None
    hidden = {content: secrets.token_hex(16) for content in _reachable(model, special)}
    if hidden:
        model = _renamed(model, hidden)
        tokens = [token for token in tokens if token["content"] not in hidden]
    return values | {"model": model, "added_tokens": tokens}


def _reachable(model: Json, special: Mapping[str, int]) -> set[str]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {content for content, _ in vocabulary if content in special}
    inside = {content for content in special if content in vocabulary}
    if "merges" not in model or model.get("ignore_merges"):
        return inside
    merged = {"".join(_pair(merge)) for merge in model["merges"]} if inside else set()
    return {content for content in inside if content in merged or len(content) == 1}


def _renamed(model: Json, names: Mapping[str, str]) -> Json:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return model | {"vocab": [[names.get(content, content), score] for content, score in vocabulary]}
    changed = copy.copy(model)
    changed["vocab"] = {names.get(content, content): number for content, number in vocabulary.items()}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        changed["merges"] = [
            merge for merge in model["merges"] if names.keys().isdisjoint({*_pair(merge), "".join(_pair(merge))})
        ]
    return changed


def _pair(merge: str | list[str]) -> list[str]:
    """The two sides of a merge, which old files write in one string."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
