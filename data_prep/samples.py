"""What compose, pack and the inspectors share: folders of parts, and the files that travel beside them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttt_dist.data.metadata import BESIDE, codec_hash
from ttt_dist.errors import UserError
from ttt_dist.files import atomic_write, copy_folder, temporary_name
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.telemetry.console import warn

NAMED_ERRORS = 20
"""How many bad items are named on the console before the rest is only counted."""


def find_parts(folder: Path, made_by: str) -> list[Path]:
    """Prefixes of the complete parts of a folder, in order. Raises UserError where there is none."""
    parts = [path.with_suffix("") for path in sorted(folder.glob("part-*.json"))]
    if not parts:
        raise UserError(f"{folder}: no complete part-*.json here; run data_prep {made_by} first, or name its folder")
    return parts


def copy_beside(source: Path, target: Path) -> None:
    """Copy tokenizer/, codec/ and template.json. Raises UserError where `target` has others."""
    for name in BESIDE:
        if name == "codec" and (source / name).is_dir():
            copy_codec(source / name, target / name)
        elif (source / name).is_dir():
            copy_folder(source / name, target / name)
        elif (source / name).is_file():
            write_once(target / name, (source / name).read_text(encoding="utf-8"))


def copy_codec(source: Path, target: Path) -> None:
    """Copy a saved codec. Raises UserError where `target` is another one.

    Of a published codec only codec.json is kept: one of the same hash is left alone wherever it says the weights are.
    """
    kept = [path.name for path in target.iterdir()] if target.is_dir() else []
    known = codec_hash(target) if kept == ["codec.json"] else None
    if known is None or known != codec_hash(source):
        copy_folder(source, target)


def write_once(path: Path, text: str) -> None:
    """Write a small file; an equal one is left alone. Raises UserError where another one is there."""
    if not path.exists():
        with atomic_write(path) as file:
            file.write(text)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: from a run with other settings; remove its folder or choose another --out")


def save_tokenizer(tokenizer: TextTokenizer, target: Path) -> None:
    """Copy a tokenizer's files into the folder `target`, whole or not at all."""
    if target.exists() and load_tokenizer(target).hash == tokenizer.hash:
        return
    temporary = temporary_name(target.with_name("saved-" + target.name))
    try:
        tokenizer.save(temporary)
        copy_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def render_template(settings: TemplateSettings) -> str:
    """The text of template.json."""
    return json.dumps(settings.to_dict(), indent=1, ensure_ascii=False) + "\n"


def load_template(path: Path) -> TemplateSettings:
    """Read template.json. Raises UserError naming the key that this version does not know or cannot use."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return TemplateSettings(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}; compose again") from None
    except (TypeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not the settings of this version ({error}); compose again") from error


def report_errors(errors: Sequence[str], already_named: int = 0) -> None:
    """Name the first bad items and count the rest."""
    room = max(NAMED_ERRORS - already_named, 0)
    for message in errors[:room]:
        warn(message)
    if already_named < NAMED_ERRORS < already_named + len(errors):
        warn("more of the kind are only counted")
