"""Speech tokenizers by name: `load_codec` opens any of them, `describe_codec` reads what a saved one is without its weights.

A codec of one's own is named as `package.module:Class[:FOLDER]`: a subclass of `Codec` (docs/extending.md).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt_dist.audio.codec import CLASS, DESCRIPTION, Codec, CodecInfo, stored_info
from ttt_dist.audio.codecs.transformers_kinds import KINDS
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object
from ttt_dist.util.plugins import call_with, is_there, load_class, split_spec

FLAG = "--codec"
COMMAND = "command:"
CHOICES = {"codebooks": "one codebook", "dtype": "one precision, float32"}
"""What the command line may choose, and what a codec has whose `load` does not take it."""


@dataclass(frozen=True, kw_only=True)
class CodecRow:
    """A codec by name."""

    target: str
    """package.module:Class of the codec. Its `load` says by its parameters which choices it takes."""
    help: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What `load` is told besides."""
    has_folder: bool = True
    """Whether it is named with the folder of its weights."""
    is_learnt: bool = False
    """`encode --train-codec` learns it; the folders of the others were published."""


PACKAGED = {
    "bigcodec": ("BigCodec", "BigCodec"),
    "nanocodec": ("NanoCodec", "NanoCodec of NVIDIA NeMo"),
    "s3tokenizer": ("S3Tokenizer", "S3 of CosyVoice 1 to 3, no decoder"),
    "snac": ("Snac", "SNAC, seven codes a frame as Orpheus-TTS has them"),
    "speechtokenizer": ("SpeechTokenizer", "SpeechTokenizer"),
}
"""Codecs by packages of the extra `codecs`: module and class here, and what it is."""

CODECS = {
    "melvq": CodecRow(
        target="ttt_dist.audio.codecs.melvq:MelVQ",
        help="built in, learnt from your speech (--train-codec)",
        is_learnt=True,
    ),
    "command": CodecRow(
        target="ttt_dist.audio.codecs.command:CommandCodec",
        help="a program of yours: command:PROGRAM in place of NAME:FOLDER",
        has_folder=False,
    ),
    "glm4voice": CodecRow(
        target="ttt_dist.audio.codecs.glm4voice:Glm4Voice", help="tokenizer of GLM-4-Voice, no decoder"
    ),
    **{
        name: CodecRow(target="ttt_dist.audio.codecs.transformers:Pretrained", help=kind.help, arguments={"name": name})
        for name, kind in KINDS.items()
    },
    **{
        name: CodecRow(target=f"ttt_dist.audio.codecs.{name}:{kind}", help=help)
        for name, (kind, help) in PACKAGED.items()
    },
}


def load_codec(
    spec: str | Path,
    codebooks: int | None = None,
    decoder_command: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Codec:
    """Load `NAME:FOLDER` (a published codec), a `FOLDER` that `save` wrote, `package.module:Class[:FOLDER]`, or
    `command:PROGRAM` (`ttt_dist.audio.codecs.command`).

    `codebooks` chooses the first so many of a codec that has several (default: all, or what the folder was saved
    with). `decoder_command` makes waveforms of codes in the codec's stead (`ttt_dist.audio.codecs.external`). `device` is
    where a network runs: by default CUDA where there is any. `dtype` is the precision of glm4voice's layers, by default
    the device's (or what the folder was saved with). Raises UserError where the folder holds no such codec.
    """
    chosen = {"codebooks": codebooks, "dtype": dtype}
    name, folder = ("command", None) if str(spec).startswith(COMMAND) else parse_spec(str(spec))
    if name == "command":
        codec = _open(name, str(spec).partition(":")[2], chosen, device, FLAG)
    elif folder is not None and (folder / DESCRIPTION).is_file():
        codec = _load_saved(name, folder, chosen, device)
    elif name and (name not in CODECS or not CODECS[name].is_learnt):
        codec = _open(name, folder, chosen, device, FLAG)
    else:
        raise _no_codec(folder or Path())
    if decoder_command is None:
        return codec
    from ttt_dist.audio.codecs.external import ExternalDecoder

    return ExternalDecoder(codec, decoder_command)


def parse_spec(spec: str) -> tuple[str, Path | None]:
    """(name, folder) of a codec's spec: a name of CODECS, `package.module:Class`, or "". Raises UserError on another name."""
    name, colon, place = spec.partition(":")
    if colon and name in CODECS:
        return name, Path(place)
    if spec in CODECS and not CODECS[spec].has_folder:
        return spec, None
    own = split_spec(spec)
    if own and is_there(own[0]) and not Path(spec).exists():
        return own[0], None if own[1] is None else Path(own[1])
    if not colon or Path(spec).exists():
        return "", Path(spec)
    raise UserError(
        f"{spec}: codec {name!r} is not known; known are {', '.join(sorted(CODECS))}, and package.module:Class "
        "of your own, of a package that is installed or on PYTHONPATH"
    )


def describe_codec(folder: str | Path) -> CodecInfo:
    """What a saved codec is, from its codec.json alone. Raises UserError where that cannot be read."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise _no_codec(Path(folder))
    return stored_info(read_description(Path(folder)), path)


def read_description(folder: Path) -> Mapping[str, Any]:
    """The contents of a codec.json, of a codec that is known or names its class. Raises UserError naming the file."""
    path = folder / DESCRIPTION
    try:
        stored = read_object(path, "save the codec again")
        name = stored["name"]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: is no codec description ({error}); save the codec again") from error
    if not isinstance(name, str) or not isinstance(stored.get(CLASS, ""), str):
        raise UserError(f"{path}: does not name its codec by text; save the codec again")
    if CLASS not in stored and name not in CODECS:
        raise UserError(f"{path}: codec {name!r} is not known; known are {', '.join(sorted(CODECS))}")
    return dict(stored)


def _load_saved(name: str, folder: Path, chosen: Mapping[str, Any], device: str | None) -> Codec:
    """The codec of a folder that `save` wrote: as it was saved, with the weights that it names where these lie elsewhere."""
    path, stored = folder / DESCRIPTION, read_description(folder)
    saved = str(stored.get(CLASS, stored["name"]))
    if name and name != saved:
        raise UserError(f"{path}: holds codec {saved!r}, but {name!r} was asked for; write {saved}:{folder}")
    weights = _weights_of(path, stored)
    for key, value in chosen.items():
        if "weights" in stored and value not in (None, stored.get(key)):
            was = {
                "codebooks": f"{stored.get(key)} codebooks",
                "dtype": stored.get(key) or "the precision of the device",
            }
            raise UserError(
                f"{path}: was saved with {was[key]}, not {value}; leave the choice out, or encode anew in another folder"
            )
    known = {key: stored[key] for key in CHOICES if key in stored}
    codec = _open(saved, weights or folder, {**chosen, **known}, device, f"{path}: codec")
    if codec.hash != stored.get("hash"):
        what, remedy = ("of weights ", "restore the weights") if weights else ("", "take the package that made it")
        raise UserError(
            f"{path}: was saved {what}with hash {str(stored.get('hash'))[:12]}, but {weights or saved} now has "
            f"{codec.hash[:12]}; {remedy}, or encode anew with {saved}{f':{weights}' if weights else ''}"
        )
    return codec


def _weights_of(path: Path, stored: Mapping[str, Any]) -> Path | None:
    """Where a codec.json says that the weights lie; None where they are beside it. Raises UserError where they are gone."""
    if "weights" not in stored:
        row = CODECS.get(stored["name"])
        if CLASS not in stored and row is not None and row.has_folder and not row.is_learnt:
            raise UserError(f"{path}: does not name its weights; save the codec again")
        return None
    weights = Path(str(stored["weights"]))
    if not os.path.exists(weights):
        raise UserError(
            f'{path}: the weights of {stored["name"]} are no longer in {weights}; put them back there, or correct "weights" '
            "(the hash is checked)"
        )
    return weights


def _open(name: str, folder: Path | str | None, chosen: Mapping[str, Any], device: str | None, flag: str) -> Codec:
    """`load` of the codec's class, told what it takes of the choices. Raises UserError on one that it does not take."""
    row = CODECS.get(name) or CodecRow(target=name, help="")
    kind = load_class(row.target, flag, Codec)
    takes = inspect.signature(kind.load).parameters
    for key, value in chosen.items():
        if key not in takes and value not in (None, 1):
            raise UserError(f"{key} {value}: {name} has {CHOICES[key]}; leave the choice out")
    told = {key: value for key, value in chosen.items() if key in takes and value is not None}
    arguments = () if folder is None else (folder,)
    codec: Codec = call_with(kind.load, f"{flag} {name}", *arguments, **told, device=device, **row.arguments)
    codec.loaded_with = told
    missing = [key for key in CodecInfo.__dataclass_fields__ if not hasattr(codec, key)]
    if missing:
        raise UserError(f"{flag} {name}: does not say its {', '.join(missing)}; a codec has all of Codec's attributes")
    return codec


def _no_codec(folder: Path) -> UserError:
    if (folder / "config.json").is_file():
        return UserError(f"{folder}: looks like a published model; say which codec it is, such as mimi:{folder}")
    return UserError(
        f"{folder}: is no codec folder (codec.json is missing); name one that was saved, learn melvq with "
        "--train-codec, or name a published codec and its folder, such as glm4voice:DIR"
    )
