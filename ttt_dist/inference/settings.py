"""How to decode, and the command-line flags that say so."""

import argparse
from dataclasses import dataclass, fields

from ttt_dist.errors import UserError


@dataclass(frozen=True)
class DecodeSettings:
    """Decoding of one call (method: decoding). Defaults: greedy, the paper's block and steps per block."""

    block: int = 32
    """Mask tokens that are appended to an open span at a time."""
    steps: int = 10
    """Forward passes that denoise one block; each commits an even share of it."""
    span_limit: int = 640
    """Longest span, in tokens."""
    max_text: int = 512
    """Most text tokens of a response, delimiters included."""
    temperature: float = 0.0
    """Of text; 0 is greedy."""
    top_k: int = 0
    """Sample text among the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample text among the likeliest tokens that together reach this probability."""
    code_temperature: float = 0.0
    """Of audio codes; 0 takes the likeliest."""
    stop_at_last_span: bool = False
    """Stop where the last span would open: all text is out by then (transcription)."""

    def __post_init__(self) -> None:
        for name in ("block", "steps", "span_limit", "max_text"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("temperature", "code_temperature", "top_k"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, but is {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p is a probability above 0 and at most 1, not {self.top_p}")


HELP = {
    "block": "mask tokens appended to an open span at a time",
    "steps": "forward passes per block",
    "span_limit": "longest span in tokens",
    "max_text": "most text tokens of a response",
    "temperature": "temperature of text; 0: greedy",
    "top_k": "sample text among the k likeliest tokens; 0: all",
    "top_p": "sample text among the likeliest tokens of this total probability",
    "code_temperature": "temperature of audio codes; 0: the likeliest",
}


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting but those that a task decides."""
    group = parser.add_argument_group("decoding")
    for field in fields(DecodeSettings):
        if field.name in HELP:
            flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
            group.add_argument(
                flag, type=kind, default=field.default, help=f"{HELP[field.name]} (default {field.default})"
            )


def settings_from_flags(arguments: argparse.Namespace) -> DecodeSettings:
    """The settings that the flags of `add_decoding_flags` say. Raises UserError naming a flag out of its range."""
    return DecodeSettings(**{name: getattr(arguments, name) for name in HELP})
