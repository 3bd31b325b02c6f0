"""The JSON beside a shard: what is in it, where it comes from, and a checksum of every file, itself included."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from ttt_dist.util.atomic_files import sha256_file, sha256_folder
from ttt_dist.util.errors import UserError

FORMAT = "ttt_dist shard 1"
ASSETS = ("tokenizer", "codec", "template.json")
"""What lies in the folder of a shard and belongs to it: folders and files, each with one checksum in the JSON. A model folder
takes it over."""


def with_suffix(prefix: str | Path, suffix: str) -> Path:
    """PREFIX + suffix; a dot in the prefix is part of the name."""
    prefix = Path(prefix)
    return prefix.with_name(prefix.name + suffix)


def asset_checksum(path: Path) -> str:
    """The SHA-256 of a file or folder of ASSETS."""
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def asset_checksums(folder: Path) -> dict[str, str]:
    """The checksums of those of ASSETS that `folder` has."""
    return {name: asset_checksum(folder / name) for name in ASSETS if (folder / name).exists()}


def codec_hash(folder: Path) -> str | None:
    """The hash of a saved codec, by which codecs are compared; None where there is none that says its hash.

    The checksum of its folder says more: codec.json of a published codec also names where the weights lie, which is
    another place on another machine.
    """
    from ttt_dist.audio import describe_codec

    try:
        return describe_codec(folder).hash
    except UserError:
        return None


def render(meta: dict[str, Any]) -> str:
    """The JSON text of `meta`, its own checksum as the last key. One meta has one text, so any changed byte shows."""
    body = {key: value for key, value in meta.items() if key != "checksum"}
    digest = sha256(_text(body).encode()).hexdigest()
    return _text({**body, "checksum": digest})


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def read(prefix: str | Path) -> dict[str, Any]:
    """The meta of a shard. Raises UserError where it is missing, unreadable, or of another format."""
    path = with_suffix(prefix, ".json")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such shard, or one that was never completed; run data_prep pack") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); write the shard again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise UserError(f"{path}: format {found!r}, not {FORMAT!r}; write the shard again with this version")
    missing = [key for key in ("layout", "counts", "files", "seq_len") if key not in meta]
    if missing:
        raise UserError(f"{path}: lacks '{missing[0]}'; write the shard again")
    return meta


def shard_names(prefix: Path, meta: dict[str, Any]) -> list[str]:
    """The names of the shards that a prefix stands for: those of a set, or its own."""
    return list(meta.get("shards") or [prefix.name])


def is_intact(prefix: str | Path) -> bool:
    """Whether the JSON's bytes are exactly those that were written."""
    return is_rendered(with_suffix(prefix, ".json").read_bytes())


def is_rendered(content: bytes) -> bool:
    """Whether bytes are exactly what `render` made of the values in them."""
    try:
        values = json.loads(content)
    except ValueError:
        return False
    return isinstance(values, dict) and content == render(values).encode()
