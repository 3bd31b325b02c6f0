"""The command-line flags of decoding, whose defaults a model folder says."""

import argparse
from dataclasses import fields

from ttt_dist.config.decode import BY_TASK, DEFAULTS, DecodeSettings, flag, folder_settings
from ttt_dist.config.reading import choices
from ttt_dist.util.console import note
from ttt_dist.util.field_docs import field_docs, first_sentence

NAMES = tuple(field.name for field in fields(DecodeSettings) if field.name not in BY_TASK)
"""The settings that have a flag: all but those that a task decides."""


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each of NAMES, which says what stands below the setting."""
    group = parser.add_argument_group("decoding", "defaults: as the model folder says, and else what is named here")
    known = {field.name: field for field in fields(DecodeSettings)}
    for name in NAMES:
        about = first_sentence(field_docs(DecodeSettings)[name]).replace("%", "%%")
        group.add_argument(
            f"--{flag(name)}",
            type=type(known[name].default),
            choices=choices(DecodeSettings, name) or None,
            help=f"{about} ({known[name].default})",
        )


def settings_from_flags(arguments: argparse.Namespace) -> DecodeSettings:
    """What the model folder `arguments.model` says, but where a flag of `add_decoding_flags` is given; a word on those that change nothing.

    Raises UserError naming a flag out of its range, or the folder's file and what is wrong in it.
    """
    given = {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name) is not None}
    stated = folder_settings(arguments.model)
    settings = stated.changed(**given)
    how = f"--audio-mode {settings.audio_mode} and --temperature {settings.temperature:g}"
    for name in sorted(settings.idle() & given.keys()):
        if given[name] not in (getattr(stated, name), getattr(DEFAULTS, name)):
            note(f"--{flag(name)} {given[name]} changes nothing with {how} (docs/decoding.md#settings)")
    return settings


def as_flags(settings: DecodeSettings) -> list[str]:
    """The flags that `settings_from_flags` reads as `settings`."""
    return [word for name in NAMES for word in (f"--{flag(name)}", str(getattr(settings, name)))]
