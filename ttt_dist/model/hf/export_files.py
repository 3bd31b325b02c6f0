"""What an exported folder has beside its weights, the same whoever writes it: training, `export-hf`, or a checkpoint's reader.

config.json and generation_config.json, the token layout, tokenizer/, codec/ and template.json, what `AutoTokenizer` reads, the
decoder for `model.generate` and the model card.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ttt_dist.config.decode import GENERATION, DecodeSettings, generation_json
from ttt_dist.data.metadata import ASSETS
from ttt_dist.data.speakers import SPEAKERS
from ttt_dist.model.hf.auto_tokenizer import write_auto_tokenizer
from ttt_dist.model.hf.families import CONFIG, LAYOUT, build_section, read_json
from ttt_dist.model.hf.model_card import CARD, model_card
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout

DISTRIBUTION = "ttt-dist"
CUSTOM_GENERATE = "custom_generate"
GENERATE = '''"""Text and speech by `model.generate`: the decoder of ttt-dist, on the weights of the model that it is called on."""

from ttt_dist.inference.custom_generate import generate

__all__ = ["generate"]
'''


def assets_in(folder: Path) -> dict[str, Path]:
    """Those of ASSETS that a folder has, by name."""
    return {name: folder / name for name in ASSETS if (folder / name).exists()}


def write_export_files(
    place: Path,
    values: Mapping[str, Any],
    layout: TokenLayout,
    assets: Mapping[str, Path],
    decoding: DecodeSettings | None,
    base_eos: Sequence[int],
    card: str | Mapping[str, str],
    speakers: Sequence[str] = (),
) -> bool:
    """Write all of them into the folder of some weights; whether it can be decoded, for which it takes all of ASSETS.

    `values` is the contents of config.json, `base_eos` the ids that ended a text of the base model. `card` is a finished model
    card, or what one says of the training, by name; `speakers` whom its prompts may name. Raises UserError where an asset is broken.
    """
    write_json(place / CONFIG, values)
    write_json(place / GENERATION, generation_json(values, decoding, base_eos))
    layout.save(place / LAYOUT)
    load_tokenizer(assets["tokenizer"]).save(place / "tokenizer")  # the folder may be a model's, with weights
    for name, source in assets.items():
        if name != "tokenizer":
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place / name)
    if speakers:
        write_json(place / SPEAKERS, {"speakers": list(speakers)})
    is_whole = assets.keys() == set(ASSETS)
    tokenizer = load_tokenizer(place / "tokenizer")
    written = place / "template.json"
    template = build_section(TemplateSettings, read_json(written), written) if written.exists() else None
    write_auto_tokenizer(place, tokenizer, layout, template)
    if is_whole:
        _write_custom_generate(place / CUSTOM_GENERATE)
    told = card if isinstance(card, str) else model_card(values, layout, place, card, is_whole)
    (place / CARD).write_text(told, encoding="utf8")
    return is_whole


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Values as readable JSON."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf8")


def _write_custom_generate(folder: Path) -> None:
    """`transformers` runs generate.py where remote code is trusted, and first looks whether the requirements are there."""
    folder.mkdir()
    (folder / "generate.py").write_text(GENERATE, encoding="utf8")
    try:
        needed = f"{DISTRIBUTION}>={version(DISTRIBUTION)}"
    except PackageNotFoundError:  # run from its source
        needed = DISTRIBUTION
    (folder / "requirements.txt").write_text(needed + "\n", encoding="utf8")
