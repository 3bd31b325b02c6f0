"""A chat: what was said so far, and as many of its last turns as a prompt may hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_dist.sequence.templates import ChatTemplate

MAX_TURNS = 99  # of a chat that a prompt holds, the question included: odd, so that the user begins


@dataclass(frozen=True)
class Turn:
    """What the user or the assistant said: text, speech as codes [n], or both."""

    role: str
    text: str
    codes: np.ndarray | None = None


def prompt_of(
    template: ChatTemplate, name: str, turns: Sequence[Turn], lang: str | None, most_tokens: int
) -> tuple[np.ndarray, tuple[Turn, ...]]:
    """The ids that ask for the next turn, and the turns in them: the oldest exchanges are left out until the rest has no more
    than `most_tokens`, or is the last question alone. Raises UserError as `ChatTemplate.prompt`."""
    turns = tuple(turns[-MAX_TURNS:])
    while True:
        ids = template.prompt(name, {"turns": [_entry(turn) for turn in turns], "lang": lang}, _codes(turns))
        if len(ids) <= most_tokens or len(turns) < 3:
            return ids, turns
        turns = turns[2:]


def _entry(turn: Turn) -> dict[str, str | None]:
    return {"role": turn.role, "text": turn.text, "audio": "given" if turn.codes is not None else None}


def _codes(turns: Sequence[Turn]) -> list[np.ndarray]:
    return [turn.codes for turn in turns if turn.codes is not None]
