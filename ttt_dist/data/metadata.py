"""The JSON beside a shard: what is in it, where it comes from, and a checksum of every file, itself included."""

import json
import os
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ttt_dist.util.atomic_files import sha256_file, sha256_folder
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import parse, read_bytes, read_object

MAX_NAME = 250  # bytes; a name of a file has 255, of which suffixes need some

FORMAT = "ttt_dist shard 1"
REMEDY = "write the shard again"
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
    """The meta of a shard. Raises UserError where it is missing, unreadable, of another format, or says what cannot be."""
    if not Path(prefix).name:  # the folder that this process is in
        raise UserError(_no_shard(Path(prefix)))
    path = with_suffix(prefix, ".json")
    try:
        meta = parse(read_bytes(path, REMEDY))
    except FileNotFoundError as error:
        raise UserError(_no_shard(Path(prefix))) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {REMEDY}") from error
    if not isinstance(meta, dict):
        raise UserError(f"{path}: format {type(meta).__name__!r}, not {FORMAT!r}; {REMEDY} with this version")
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: format {meta.get('format')!r}, not {FORMAT!r}; {REMEDY} with this version")
    missing = [key for key in ("layout", "counts", "files", "seq_len") if key not in meta]
    if missing:
        raise UserError(f"{path}: lacks '{missing[0]}'; {REMEDY}")
    require_shape(meta, path, REMEDY)
    return meta


def read_checksum(prefix: Path) -> bytes | None:
    """The checksum that the JSON of a shard or set ends with, whatever its length; None where it ends with something else."""
    try:
        with open(with_suffix(prefix, ".json"), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 128, 0))
            found = _LAST_KEY.search(file.read())
    except (OSError, ValueError):
        return None
    return found and bytes.fromhex(found[1].decode())


_LAST_KEY = re.compile(rb'\n "checksum": "([0-9a-f]{64})"\n}\n\Z')


def require_shape(meta: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Raise UserError where one of the values that the JSON of a shard or part may have is none of its kind."""
    for key, (kind, is_right) in SHAPES.items():
        if key in meta and not is_right(meta[key]):
            raise UserError(f"{path}: '{key}' is {meta[key]!r}, not {kind}; {remedy}")
    if path.stem in meta.get("shards", ()):
        raise UserError(f"{path}: lists itself among its shards; {remedy}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and _is_count(value)


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or value != Path(value).name or "\0" in value or value in ("", ".", ".."):
        return False
    return len(value.encode("utf-8", "surrogatepass")) < MAX_NAME and not re.search("[\ud800-\udfff]", value)


def _are(values: Any, is_key: Callable[[Any], bool], is_value: Callable[[Any], bool]) -> bool:
    return isinstance(values, dict) and all(is_key(key) and is_value(value) for key, value in values.items())


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and _is_size(value.get("bytes")) and isinstance(value.get("sha256", ""), str)


def _is_tally(value: Any) -> bool:
    is_tally = isinstance(value, dict) and set(value) == {"count", "places"} and _is_size(value["count"])
    return is_tally and isinstance(value["places"], list) and all(isinstance(one, str) for one in value["places"])


SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "layout": ("a token layout", lambda value: isinstance(value, dict)),
    "seq_len": ("a number of tokens", lambda value: value is None or (_is_size(value) and 0 < value < 2**31)),
    "counts": ("numbers by name", lambda value: _are(value, lambda key: True, _is_count)),
    "files": ("sizes and checksums by file name", lambda value: _are(value, _is_name, _is_file)),
    "beside": ("checksums by name", lambda value: _are(value, _is_name, lambda one: isinstance(one, str))),
    "speakers": ("numbers by name", lambda value: _are(value, lambda key: True, _is_size)),
    "shards": ("a list of shards", lambda value: isinstance(value, list) and bool(value) and all(map(_is_name, value))),
    "part": ("a number", _is_size),
    "parts": ("a number", lambda value: _is_size(value) and value > 0),
    "problems": (
        "a list of messages",
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    ),
    "notes": ("counts and places by reason", lambda value: _are(value, lambda key: True, _is_tally)),
}
"""Keys of the JSON of a shard or part whose values other code relies on."""


def _no_shard(prefix: Path) -> str:
    """What is said of a prefix without a JSON: what a user may have meant by it."""
    told = f"{prefix}: is no prefix of shards"
    if prefix.is_dir():
        if any(prefix.glob("part-*.json")):
            return f"{told}, but a folder of parts; run data_prep pack on samples, and name the prefix that it wrote"
        inside = sorted(path.stem for path in prefix.glob("*.json") if is_shard(path.with_suffix("")))
        whole = [name for name in inside if not _MEMBER.search(name)] or inside
        remedy = (
            f"name a shard in it: {', '.join(str(prefix / name) for name in whole[:3])}"
            if whole
            else "run data_prep pack"
        )
        return f"{told}, but a folder; {remedy}"
    bare = prefix.with_suffix("")
    if prefix.suffix in (".bin", ".idx", ".json") and is_shard(bare):
        return f"{told}, but one of a shard's files; name them all by their prefix: {bare}"
    pair = next(filter(is_text_set, (prefix, bare)), None)
    if pair is not None:
        return (
            f"{told}: {pair}.bin and .idx have no {pair.name}.json, which says what their ids mean; training takes a plain Megatron "
            f"set of text as a source of data.blend beside packed shards: data.blend.text.shard={pair}"
        )
    if prefix.is_file():
        return f"{told}, but a file of another kind; run data_prep compose or import, then pack, and name the prefix that pack wrote"
    return f"{with_suffix(prefix, '.json')}: no such shard, or one that was never completed; run data_prep pack"


_MEMBER = re.compile(r"-\d{5}-of-\d{5}$")


def is_shard(prefix: Path) -> bool:
    """Whether a prefix has a JSON that calls itself a shard."""
    try:
        return read_object(with_suffix(prefix, ".json"), REMEDY).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def is_text_set(prefix: str | Path) -> bool:
    """Whether a prefix is a plain Megatron pair, whose ids no JSON explains."""
    is_file = {suffix: with_suffix(prefix, suffix).is_file() for suffix in (".bin", ".idx", ".json")}
    return is_file == {".bin": True, ".idx": True, ".json": False}


def shard_names(prefix: Path, meta: dict[str, Any]) -> list[str]:
    """The names of the shards that a prefix stands for: those of a set, or its own."""
    return list(meta.get("shards") or [prefix.name])


def is_intact(prefix: str | Path) -> bool:
    """Whether the JSON's bytes are exactly those that were written."""
    return is_rendered(with_suffix(prefix, ".json").read_bytes())


def is_rendered(content: bytes) -> bool:
    """Whether bytes are exactly what `render` made of the values in them."""
    try:
        values = parse(content)
        return isinstance(values, dict) and content == render(values).encode()
    except (ValueError, RecursionError):  # of lone surrogates, and of a depth that is read but not written
        return False
