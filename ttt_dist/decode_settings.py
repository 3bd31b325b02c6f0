"""How to decode (method: decoding)."""

from dataclasses import dataclass
from typing import Literal

from ttt_dist.errors import UserError

AT_LEAST_ONE = ("block", "steps", "span_limit", "max_text", "max_codes")
NOT_NEGATIVE = ("temperature", "top_k", "code_temperature", "cfg")


@dataclass(frozen=True)
class DecodeSettings:
    """Decoding of one request. Defaults: greedy, the paper's block and steps per block."""

    block: int = 32
    """Mask tokens that are appended to an open span at a time."""
    steps: int = 10
    """Most forward passes that denoise one block; each commits an even share of it, at least."""
    threshold: float = 0.0
    """Commit beyond the share whatever the model gives this probability, so that fewer forwards do; 0: never."""
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    """Which positions stay masked: those the model is least sure of, or any."""
    block_cache: Literal["exact", "block_causal"] = "exact"
    """exact: an open span is recomputed in every forward, as training saw it. block_causal: its finished blocks are kept
    and no longer see later ones; an approximation that makes long spans cheaper."""
    cfg: float = 0.0
    """Classifier-free guidance s of spans: u + (1 + s)(c - u), u with all context masked. Above 0 each forward of a span
    takes two. Not trained for."""
    span_limit: int = 640
    """Longest span, in tokens."""
    max_text: int = 512
    """Most text tokens of a response, delimiters included."""
    max_codes: int = 3000
    """Most audio tokens of a response, ends of spans included."""
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
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise UserError(f"{name} (--{flag(name)}) must be at least 1, not {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} (--{flag(name)}) must not be negative, but is {getattr(self, name)}")
        for name, low in (("threshold", "0 (never)"), ("top_p", "above 0")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "top_p" and value == 0):
                raise UserError(f"{name} (--{flag(name)}) is a probability from {low} to 1, not {value}")
        for name, known in (("remasking", ("low_confidence", "random")), ("block_cache", ("exact", "block_causal"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} (--{flag(name)}) is {getattr(self, name)!r}; choose {' or '.join(known)}")


def flag(name: str) -> str:
    """The flag of a setting, without dashes in front."""
    return name.replace("_", "-")


DEFAULTS = DecodeSettings()
