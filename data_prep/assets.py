"""What travels beside samples and shards: tokenizer/, codec/ and template.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.data.metadata import ASSETS, codec_hash
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.util.atomic_files import atomic_write, copy_folder, remove_leftovers, temporary_name
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease

if TYPE_CHECKING:
    from ttt_dist.audio import Codec


def copy_assets(source: Path, target: Path) -> None:
    """Copy tokenizer/, codec/ and template.json. Raises UserError where `target` has others."""
    for name in ASSETS:
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
        temporary.mkdir(parents=True)
        tokenizer.save(temporary)
        copy_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def render_template(settings: TemplateSettings) -> str:
    """The text of template.json."""
    return json.dumps(settings.to_dict(), indent=1, ensure_ascii=False) + "\n"


def write_assets(template: ChatTemplate, out: Path, codec: Path | None) -> None:
    """Tokenizer, codec and template.json into the folder of the samples. Raises UserError where others lie there."""
    with lease(out / "tokenizer", wait=True):
        remove_leftovers(out / "tokenizer", out / "saved-tokenizer", out / "codec", out / "template.json")
        save_tokenizer(template.tokenizer, out / "tokenizer")
        if codec is not None:
            copy_codec(codec, out / "codec")
        write_once(out / "template.json", render_template(template.settings))


def keep_codec(codec: Codec, folder: Path) -> None:
    """Save the codec beside its codes; UserError where another one lies there."""
    from ttt_dist.audio import describe_codec

    with lease(folder, wait=True):
        if not (folder / "codec.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of one, left by a job that was killed
            codec.save(folder)
        elif describe_codec(folder).hash != codec.hash:
            raise UserError(f"{folder}: holds another codec than the one asked for; remove it or choose another --out")
