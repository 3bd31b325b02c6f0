"""The command-line flags of decoding."""

import argparse
from dataclasses import fields
from typing import get_args

from ttt_dist.decode_settings import DecodeSettings, flag

HELP = {
    "block": "mask tokens appended to an open span at a time",
    "steps": "most forward passes per block",
    "threshold": "commit all codes of at least this probability at once; 0: an even share per forward",
    "remasking": "which positions wait",
    "block_cache": "exact, or the approximation that keeps finished blocks of a span as they are",
    "cfg": "classifier-free guidance of spans, at twice their forwards; 0: none",
    "span_limit": "longest span in tokens",
    "max_text": "most text tokens of a response",
    "max_codes": "most audio tokens of a response",
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
            group.add_argument(
                f"--{flag(field.name)}",
                type=type(field.default),
                default=field.default,
                choices=get_args(field.type) or None,
                help=f"{HELP[field.name]} (default {field.default})",
            )


def settings_from_flags(arguments: argparse.Namespace) -> DecodeSettings:
    """The settings that the flags of `add_decoding_flags` say. Raises UserError naming a flag out of its range."""
    return DecodeSettings(**{name: getattr(arguments, name) for name in HELP})


def as_flags(settings: DecodeSettings) -> list[str]:
    """The flags that `settings_from_flags` reads as `settings`."""
    return [word for name in HELP for word in (f"--{flag(name)}", str(getattr(settings, name)))]
