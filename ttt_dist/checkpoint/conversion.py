"""Checkpoints of any layout to what other programs read: universal checkpoints, and plain Hugging Face folders.

Both return what to tell, read one weight at a time, and compare checksums first: what is broken must not get new ones.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ttt_dist.checkpoint.export import assets_folder
from ttt_dist.checkpoint.inspection import find_checkpoint
from ttt_dist.checkpoint.manifest import require_checksums, require_whole
from ttt_dist.checkpoint.saved_state import WEIGHTS, SavedState
from ttt_dist.checkpoint.universal import open_checkpoint, write_universal
from ttt_dist.model.hf.auto_tokenizer import write_auto_tokenizer
from ttt_dist.model.hf.families import config_json
from ttt_dist.model.hf.folder import MAX_SHARD_BYTES, new_folder, write_configs, write_weights
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.util.console import Progress
from ttt_dist.util.errors import UserError


def reshard(source: Path, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Write the universal form of a checkpoint, or of a run's newest one. Raises UserError."""
    state = _sound_checkpoint(source)
    write_universal(state, out, max_shard_bytes)
    return f"{out}: step {state.metadata['step']:,} of {state.folder}, {len(state.shapes)} weights with their moments"


def export_checkpoint(
    source: Path,
    out: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer_folder: Path | None = None,
) -> str:
    """Write the Hugging Face folder of a checkpoint, or of a run's newest one, without our padding rows. Raises UserError.

    The tokenizer is that beside the shards of the run, unless a folder is given.
    """
    state = _sound_checkpoint(source)
    tokenizer = _tokenizer_of(state, tokenizer_folder)
    num_rows = state.layout.vocab_size
    values = config_json(state.config.model, state.layout, num_rows, dtype)

    def weights() -> Iterator[tuple[str, Tensor]]:
        with Progress(len(state.shapes), f"writing {out}", "tensor") as progress:
            for name in state.shapes:
                weight = state.read(name, WEIGHTS)
                yield name, (weight[:num_rows] if name in VOCABULARY_WEIGHTS else weight).to(dtype)
                progress.advance()

    with new_folder(out) as place:
        write_weights(place, weights(), state.config.model, max_shard_bytes)
        write_configs(place, values, state.config.evaluation.decode)
        tokenizer.save(place / "tokenizer")
        write_auto_tokenizer(place, tokenizer, state.layout)
    return f"{out}: {values['architectures'][0]}, {num_rows:,} rows, of step {state.metadata['step']:,}"


def _sound_checkpoint(source: Path) -> SavedState:
    folder = find_checkpoint(source)
    if folder is None:
        raise UserError(f"--source {source}: no checkpoint here; name RUN/checkpoints/step-N or a run folder")
    files = require_whole(folder)
    with Progress(sum(file.bytes for file in files.values()) / 1e6, f"checking {folder}", "MB") as progress:
        for name, file in files.items():
            require_checksums(folder, files, [name])
            progress.advance(file.bytes / 1e6)
    return open_checkpoint(folder)


def _tokenizer_of(state: SavedState, folder: Path | None) -> TextTokenizer:
    """The tokenizer in `folder`, or beside the shards of the checkpoint's run, if it is the one trained with."""
    own = assets_folder(state.config) / "tokenizer"
    if folder is None and not own.is_dir():
        raise UserError(f"{own}: gone since the run that wrote {state.folder}; name the tokenizer with --tokenizer")
    tokenizer, wanted = load_tokenizer(folder or own), state.layout.tokenizer_hash
    if wanted and tokenizer.hash != wanted:
        raise UserError(
            f"{folder or own}: hash {tokenizer.hash[:12]}, but the checkpoint's token layout was made with {wanted[:12]}; "
            "name the tokenizer that the model was trained with (--tokenizer)"
        )
    return tokenizer
