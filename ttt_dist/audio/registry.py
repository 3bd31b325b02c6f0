"""Speech tokenizers by name: `load_codec` opens any of them, `describe_codec` reads what a saved one is without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt_dist.audio.codec import DESCRIPTION, Codec, CodecInfo
from ttt_dist.util.errors import UserError

PRETRAINED = ("dac", "encodec", "higgs", "mimi", "neucodec", "xcodec", "xcodec2")  # read through transformers
PUBLISHED = ("glm4voice", *PRETRAINED)  # codecs whose folders others published
KNOWN = (*PUBLISHED, "melvq")


def load_codec(
    spec: str | Path,
    codebooks: int | None = None,
    decoder_command: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Codec:
    """Load `NAME:FOLDER` (a published codec), or a `FOLDER` that `save` wrote, whose codec.json says the name.

    `codebooks` chooses the first so many of a codec that has several (default: all, or what the folder was saved
    with). `decoder_command` makes waveforms of codes in the codec's stead (`ttt_dist.audio.codecs.external`). `device` is
    where a network runs: by default CUDA where there is any. `dtype` is the precision of glm4voice's layers, by default
    the device's (or what the folder was saved with). Raises UserError where the folder holds no such codec.
    """
    name, _, place = str(spec).rpartition(":")
    folder = Path(place)
    if (folder / DESCRIPTION).is_file():
        codec = _load_saved(name, folder, codebooks, device, dtype)
    elif name in PUBLISHED:
        codec = _load_published(name, folder, codebooks, device, dtype)
    else:
        raise _no_codec(name, folder)
    if decoder_command is None:
        return codec
    from ttt_dist.audio.codecs.external import ExternalDecoder

    return ExternalDecoder(codec, decoder_command)


def describe_codec(folder: str | Path) -> CodecInfo:
    """What a saved codec is, from its codec.json alone. Raises UserError where that cannot be read."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise _no_codec("", Path(folder))
    stored = read_description(Path(folder))
    try:
        return CodecInfo(
            name=str(stored["name"]),
            hash=str(stored["hash"]),
            sample_rate=int(stored["sample_rate"]),
            frame_rate=float(stored["frame_rate"]),
            codes_per_frame=int(stored.get("codes_per_frame", 1)),
            codebook_size=int(stored["codebook_size"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: does not say what the codec is ({error!r}); save the codec again") from error


def read_description(folder: Path) -> Mapping[str, Any]:
    """The contents of a codec.json, whose name is known. Raises UserError naming the file."""
    path = folder / DESCRIPTION
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        name = stored["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no codec description ({error}); save the codec again") from error
    if name not in KNOWN:
        raise UserError(f"{path}: codec {name!r} is not known; known are {', '.join(sorted(KNOWN))}")
    return dict(stored)


def _load_saved(name: str, folder: Path, codebooks: int | None, device: str | None, dtype: str | None) -> Codec:
    stored = read_description(folder)
    if name and name != stored["name"]:
        raise UserError(
            f"{folder / DESCRIPTION}: holds codec {stored['name']!r}, but {name!r} was asked for; "
            f"write {stored['name']}:{folder}"
        )
    if stored["name"] == "melvq":
        from ttt_dist.audio.codecs.melvq import MelVQ

        if codebooks not in (None, 1):
            raise UserError(f"codebooks {codebooks}: melvq has one codebook; leave the choice out")
        _require_no_choice("melvq", dtype)
        return MelVQ.load(folder)
    from ttt_dist.audio.codecs.published import saved_choice

    weights, chosen = saved_choice(folder, stored, codebooks)
    if dtype not in (None, stored.get("dtype")):
        was = stored.get("dtype") or "the precision of the device"
        raise UserError(f"{folder / DESCRIPTION}: was saved with {was}, not {dtype}; encode anew in another folder")
    codec = _load_published(stored["name"], weights, chosen, device, stored.get("dtype"))
    if codec.hash != stored.get("hash"):
        raise UserError(
            f"{folder / DESCRIPTION}: was saved of weights with hash {str(stored.get('hash'))[:12]}, but {weights} now has "
            f"{codec.hash[:12]}; restore the weights, or encode anew with {stored['name']}:{weights}"
        )
    return codec


def _load_published(name: str, folder: Path, codebooks: int | None, device: str | None, dtype: str | None) -> Codec:
    if name == "glm4voice":
        from ttt_dist.audio.codecs.glm4voice import Glm4Voice

        return Glm4Voice.load(folder, codebooks, device, dtype)
    _require_no_choice(name, dtype)
    from ttt_dist.audio.codecs.transformers import Pretrained

    return Pretrained.load(name, folder, codebooks, device)


def _require_no_choice(name: str, dtype: str | None) -> None:
    if dtype is not None:
        raise UserError(f"dtype {dtype}: {name} has one precision, float32; leave the choice out")


def _no_codec(name: str, folder: Path) -> UserError:
    if name and name not in KNOWN:
        return UserError(f"{name}:{folder}: codec {name!r} is not known; known are {', '.join(sorted(KNOWN))}")
    if not name and (folder / "config.json").is_file():
        return UserError(f"{folder}: looks like a published model; say which codec it is, such as mimi:{folder}")
    return UserError(
        f"{folder}: is no codec folder (codec.json is missing); name one that was saved, learn melvq with "
        "--train-codec, or name a published codec and its folder, such as glm4voice:DIR"
    )
