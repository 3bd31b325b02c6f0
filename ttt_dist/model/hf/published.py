"""Published models to model folders for training, and model folders to what `transformers` loads.

Tensors pass through in pieces: a model is never whole in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ttt_dist.config.decode import GENERATION, generation_json, stated_settings
from ttt_dist.config.model import ModelConfig
from ttt_dist.data.speakers import read_speakers
from ttt_dist.model.hf.export_files import assets_in, write_export_files, write_json
from ttt_dist.model.hf.families import (
    CONFIG,
    LAYOUT,
    MAX_SHARD_BYTES,
    config_json,
    eos_of,
    model_config,
    model_section,
    read_json,
    stated_objective,
)
from ttt_dist.model.hf.folder import expected_tensors, new_folder
from ttt_dist.model.hf.model_card import CARD
from ttt_dist.model.hf.tensor_files import TensorFolder, TensorWriter
from ttt_dist.model.hf.vocabulary import draw_rows, row_statistics
from ttt_dist.model.hf.weight_names import VOCABULARY_TENSORS
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout, extend, released, require_room
from ttt_dist.util.console import Progress
from ttt_dist.util.errors import UserError
from ttt_dist.util.hub_names import require_folder

EMBEDDING, HEAD = VOCABULARY_TENSORS
SOURCE_ROWS = "source_vocab_size"  # key of an imported config.json: rows of the published model, padding included
RECIPE = "recipe.yaml"  # of an imported folder
KEPT_KEYS = ("max_position_embeddings", "bos_token_id")  # of the published config.json; the others are computed


def import_hf(
    source: Path,
    out: Path,
    tokenizer_folder: Path | None = None,
    codebook: int | None = None,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Write the model folder of a published model whose vocabulary knows speech; returns what to tell.

    The layout is that of the released TtT vocabulary, or, with `codebook`, the tokenizer's extended by so many codes.
    Rows for tokens that the model lacks are drawn from (their own statistics, `seed`). Raises UserError.
    """
    require_new(out)
    path = require_folder(f"--source {source}", source, "--source DIR") / CONFIG
    values = read_json(path)
    config, tensors = model_config(values, path), TensorFolder(source)
    num_source_rows = _require_whole(tensors, config, values, path)
    tokenizer = load_tokenizer(tokenizer_folder or source)
    layout = _released_layout(tokenizer) if codebook is None else extend(tokenizer, codebook)
    num_known = _known_rows(values, path, tokenizer, layout, num_source_rows, codebook is None)
    num_rows, dtype = max(num_source_rows, layout.vocab_size), tensors.info(EMBEDDING).dtype

    def rows(name: str) -> Iterator[Tensor]:
        return _extended(tensors, name, num_known, layout.vocab_size, seed)

    with new_folder(out) as place:
        _copy(tensors, expected_tensors(config, num_rows), place, None, max_shard_bytes, rows)
        kept = {key: values[key] for key in KEPT_KEYS if key in values}
        own = config_json(config, layout, num_rows, dtype)
        write_json(place / CONFIG, own | kept | {SOURCE_ROWS: values.get(SOURCE_ROWS, num_source_rows)})
        write_json(
            place / GENERATION, generation_json(own, None, eos_of(source))
        )  # exports of its training take them on
        layout.save(place / LAYOUT)
        tokenizer.save(place / "tokenizer")
        (place / RECIPE).write_text(_recipe(place, out, source.name), encoding="utf8")
    drawn = layout.vocab_size - num_known
    return f"{out}: {config.family}, {layout.vocab_size:,} tokens ({drawn:,} rows drawn), {num_rows:,} rows; {RECIPE} there has its shape"


def _recipe(folder: Path, init_from: Path, name: str) -> str:
    """What a recipe says of the imported model: a beginning, or a config as it stands with the shards on the command line."""
    start = yaml.safe_dump({"train": {"init_from": str(init_from)}}, allow_unicode=True)
    shape = yaml.safe_dump({"model": model_section(folder)}, sort_keys=False)
    return f"# {name}: its shape, for the recipe of a run, or as one: train.py --config FILE data.train=SHARDS\n{shape}{start}"


def export_hf(source: Path, out: Path, dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Write a model folder anew, without our padding rows, in another type and files; returns what to tell. Raises UserError."""
    require_new(out)
    path = source / CONFIG
    values = read_json(path)
    config, tensors, layout = model_config(values, path), TensorFolder(source), TokenLayout.load(source / LAYOUT)
    found = _require_whole(tensors, config, values, path)
    if found < layout.vocab_size:
        raise UserError(f"{source}: {EMBEDDING} has {found} rows, {LAYOUT} {layout.vocab_size}; import the model again")
    num_rows = min(found, max(layout.vocab_size, values.get(SOURCE_ROWS) or 0))

    def rows(name: str) -> Iterator[Tensor]:
        return tensors.chunks(name, 0, num_rows)

    with new_folder(out) as place:
        _copy(tensors, expected_tensors(config, num_rows), place, dtype, max_shard_bytes, rows)
        objective = stated_objective(values, path)
        own = config_json(config, layout, num_rows, dtype or tensors.info(EMBEDDING).dtype, objective)
        own |= {key: values[key] for key in KEPT_KEYS if key in values}
        card: str | dict[str, str] = (source / CARD).read_text(encoding="utf8") if (source / CARD).is_file() else {}
        is_whole = write_export_files(
            place, own, layout, assets_in(source), stated_settings(source), eos_of(source), card, read_speakers(source)
        )
    return f"{out}: {own['architectures'][0]}, {num_rows:,} rows{told_use(is_whole)}"


def told_use(is_whole: bool) -> str:
    """What is said of a new folder that speech cannot be decoded of."""
    return "" if is_whole else "; without codec and template: a text model, which generate.py does not decode"


def _copy(
    tensors: TensorFolder,
    shapes: dict[str, tuple[int, ...]],
    place: Path,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    vocabulary_rows: Callable[[str], Iterator[Tensor]],
) -> None:
    """Write the tensors of `shapes`; those of the vocabulary have the rows that `vocabulary_rows(name)` gives in chunks."""
    num_bytes = sum(
        torch.Size(shape).numel() * (dtype or tensors.info(name).dtype).itemsize for name, shape in shapes.items()
    )
    with (
        closing(TensorWriter(place, max_shard_bytes)) as writer,
        Progress(num_bytes / 1e6, "writing", "MB") as progress,
    ):
        for name, shape in shapes.items():
            chunks = vocabulary_rows(name) if name in VOCABULARY_TENSORS else tensors.chunks(name)
            before = writer.num_bytes
            writer.add(name, shape, dtype or tensors.info(name).dtype, chunks)
            progress.advance((writer.num_bytes - before) / 1e6)
        writer.finish()


def _extended(tensors: TensorFolder, name: str, num_known: int, num_tokens: int, seed: int) -> Iterator[Tensor]:
    """Known rows as they are, drawn ones up to `num_tokens`, then what padding the source has beyond."""
    yield from tensors.chunks(name, 0, num_known)
    if num_tokens > num_known:
        # In fp64: the statistics of 150,000 rows, and rows that are the same on any number of cores.
        known = tensors.chunks(name, 0, num_known, item_bytes=8)
        yield from draw_rows(
            row_statistics(known, f"{tensors.info(name).path}: {name}"), num_tokens - num_known, seed, name
        )
    yield from tensors.chunks(name, num_tokens)


def _released_layout(tokenizer: TextTokenizer) -> TokenLayout:
    """The released layout; refused where the tokenizer puts a special token elsewhere."""
    layout = released(tokenizer.name, tokenizer.hash)
    require_room(tokenizer, layout)
    for name, wanted in layout.special_ids.items():
        found = tokenizer.special_id(PIECES[name])
        if found != wanted and (found is not None or wanted < layout.num_text_tokens):
            raise UserError(
                f"--layout released: the tokenizer has {PIECES[name]} as {found}, the released vocabulary as {wanted}; "
                "name Qwen2.5's with --tokenizer, or use --codebook"
            )
    return layout


def _known_rows(
    values: dict[str, Any], path: Path, tokenizer: TextTokenizer, layout: TokenLayout, num_rows: int, is_released: bool
) -> int:
    """How many of the first `layout.vocab_size` rows the source has trained: rows beyond its tokenizer are padding."""
    if values.get("mask_token") is not None:  # a Text-to-Talk model: speech is known
        if values["mask_token"] != layout.mask:
            raise UserError(
                f"{path}: mask_token is {values['mask_token']}, but {layout.mask} in the layout asked for; "
                "give the --codebook or --layout that the model was trained with"
            )
        known = layout.vocab_size
    else:
        known = (
            layout.vocab_size
            if is_released and num_rows >= layout.vocab_size
            else min(tokenizer.size, layout.num_text_tokens)
        )
    if known > num_rows:
        raise UserError(
            f"{path}: the model has {num_rows} rows for {known} tokens; name its own tokenizer with --tokenizer"
        )
    return known


def _require_whole(tensors: TensorFolder, config: ModelConfig, values: dict[str, Any], path: Path) -> int:
    """Check that a folder holds exactly the model of its config.json; rows of its embedding."""
    num_rows = tensors.info(EMBEDDING).shape[0]
    if values.get("vocab_size") != num_rows:
        raise UserError(
            f"{path}: vocab_size is {values.get('vocab_size')}, but {EMBEDDING} has {num_rows} rows; correct it"
        )
    expected = expected_tensors(config, num_rows)
    for name, shape in expected.items():
        where, found, _ = tensors.info(name)
        if found != shape:
            raise UserError(f"{where}: {name} is {list(found)}, but {path} says {list(shape)}; correct it")
    for name in tensors:
        if name == HEAD and config.tie_embeddings:
            _require_tied(tensors, path)
        elif name not in expected and not name.endswith("rotary_emb.inv_freq"):  # a table that old exports carry
            raise UserError(
                f"{tensors.info(name).path}: {name} is no part of a {config.family}; correct model_type in {path}"
            )
    return num_rows


def _require_tied(tensors: TensorFolder, path: Path) -> None:
    """A tied model may carry its head, if that is its embedding."""
    same_shape = tensors.info(HEAD).shape == tensors.info(EMBEDDING).shape
    if not same_shape or not all(map(torch.equal, tensors.chunks(HEAD), tensors.chunks(EMBEDDING))):
        raise UserError(f"{path}: tie_word_embeddings is true, but {HEAD} is not the embedding; set it to false")


def require_new(out: Path) -> None:
    """Raise UserError where the folder to be written exists."""
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or choose another place")
