"""The command-line flags of decoding, whose defaults a model folder says."""

import argparse
from dataclasses import fields

from ttt_dist.config.decode import DecodeSettings, flag, folder_settings
from ttt_dist.config.reading import choices

HELP = {
    "audio_mode": "how audio is written: blocks of masks are denoised, or codes one by one, or what that gives by drafts",
    "block": "mask tokens appended to an open span at a time",
    "steps": "most forward passes per block",
    "position_decay": "how much sooner masks nearer to the start are committed; 0: by sureness alone, 100: from left to right",
    "commit_power": "power of the share that is committed after each forward; 1: even shares, above: few at first",
    "threshold": "commit all codes of at least this probability at once; 0: never beyond the share",
    "remasking": "which positions wait: those of low probability, narrow margin, high entropy, or random ones",
    "ends": "where an end of audio may be committed",
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
    group = parser.add_argument_group("decoding", "defaults: as the model folder says, and else what is named here")
    known = {field.name: field for field in fields(DecodeSettings)}
    for name, about in HELP.items():
        group.add_argument(
            f"--{flag(name)}",
            type=type(known[name].default),
            choices=choices(DecodeSettings, name) or None,
            help=f"{about} ({known[name].default})",
        )


def settings_from_flags(arguments: argparse.Namespace) -> DecodeSettings:
    """What the model folder `arguments.model` says, but where a flag of `add_decoding_flags` is given.

    Raises UserError naming a flag out of its range, or the folder's file and what is wrong in it.
    """
    given = {name: getattr(arguments, name) for name in HELP if getattr(arguments, name) is not None}
    return folder_settings(arguments.model).changed(**given)


def as_flags(settings: DecodeSettings) -> list[str]:
    """The flags that `settings_from_flags` reads as `settings`."""
    return [word for name in HELP for word in (f"--{flag(name)}", str(getattr(settings, name)))]
