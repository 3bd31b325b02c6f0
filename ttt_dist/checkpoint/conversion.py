"""Checkpoints of any layout to what other programs read: universal checkpoints, and model folders as Hugging Face has them.

Both return what to tell, read one weight at a time, and compare checksums first: what is broken must not get new ones.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ttt_dist.checkpoint.export import adaptation_of, assets_folder, base_eos, training_story
from ttt_dist.checkpoint.inspection import find_checkpoint
from ttt_dist.checkpoint.manifest import require_checksums, require_whole
from ttt_dist.checkpoint.saved_state import WEIGHTS, SavedState
from ttt_dist.checkpoint.universal import open_checkpoint, write_universal
from ttt_dist.data.metadata import ASSETS
from ttt_dist.data.speakers import shard_speakers
from ttt_dist.model.hf.adapter import Merged
from ttt_dist.model.hf.export_files import assets_in, write_export_files
from ttt_dist.model.hf.families import config_json
from ttt_dist.model.hf.folder import MAX_SHARD_BYTES, new_folder, write_weights
from ttt_dist.model.hf.published import told_use
from ttt_dist.parallel.partition import VOCABULARY_WEIGHTS
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.util.console import Progress
from ttt_dist.util.errors import UserError
from ttt_dist.util.similar_paths import remedy_for


def reshard(source: Path, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> str:
    """Write the universal form of a checkpoint, or of a run's newest one. Raises UserError."""
    state = _sound_checkpoint(source)
    write_universal(state, out, max_shard_bytes)
    return f"{out}: step {state.metadata['step']:,} of {state.folder}, {len(state.shapes)} weights with their moments"


def export_checkpoint(
    source: Path,
    out: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer_folder: Path | None = None,
    needs_speech: bool = False,
    kind: str = WEIGHTS,
) -> str:
    """Write the model folder of a checkpoint, or of a run's newest one, without our padding rows. Raises UserError.

    Tokenizer, codec and template are those beside the shards of the run, or in its export, unless a folder is given;
    `needs_speech` refuses what could not be decoded without them. Without a `dtype`, it is that of the run's own export.
    `kind` is EMA for the moving average.
    """
    state = _sound_checkpoint(source)
    if kind not in state.kinds:
        raise UserError(
            f"{state.folder}: its run keeps no moving average of the weights; train with train.ema=0.999 or so"
        )
    assets, step = _assets_of(state, tokenizer_folder, needs_speech), int(state.metadata["step"])
    dtype = dtype or {"bf16": torch.bfloat16, "fp32": torch.float32}[state.config.train.precision]
    num_rows, objective = state.layout.vocab_size, state.config.objective.at(max(step - 1, 0))
    values = config_json(state.config.model, state.layout, num_rows, dtype, objective)

    def weights() -> Iterator[tuple[str, Tensor]]:
        with Progress(len(state.shapes), f"writing {out}", "tensor") as progress:
            for name in state.shapes:
                weight = state.read(name, kind)
                yield name, weight[:num_rows] if name in VOCABULARY_WEIGHTS else weight
                progress.advance()

    merged = Merged(weights(), state.config.model, adaptation_of(state.config, state.layout))
    with new_folder(out) as place:
        cast = ((name, weight.to(dtype)) for name, weight in merged)
        write_weights(place, cast, merged.config, max_shard_bytes)
        merged.write_adapter(place, state.layout, dtype)
        is_whole = write_export_files(
            place, values, state.layout, assets, state.config.evaluation.decode, base_eos(state.config),
            training_story(state.config, step, _run_of(state)), shard_speakers(state.config.data.prefixes().values()),
        )  # fmt: skip
    return f"{out}: {values['architectures'][0]}, {num_rows:,} rows, of step {step:,}{told_use(is_whole)}"


def _sound_checkpoint(source: Path) -> SavedState:
    folder = find_checkpoint(source)
    if folder is None:
        remedy = remedy_for(source, "name RUN/checkpoints/step-N or a run folder")
        raise UserError(f"--source {source}: no checkpoint here; {remedy}")
    files = require_whole(folder)
    with Progress(sum(file.bytes for file in files.values()) / 1e6, f"checking {folder}", "MB") as progress:
        for name, file in files.items():
            require_checksums(folder, files, [name])
            progress.advance(file.bytes / 1e6)
    return open_checkpoint(folder)


def _run_of(state: SavedState) -> Path:
    """The run folder that a checkpoint lies in, wherever that has been moved to."""
    return state.folder.absolute().parent.parent


def _assets_of(state: SavedState, tokenizer_folder: Path | None, needs_speech: bool) -> dict[str, Path]:
    """What goes beside the weights, as far as it is there; the tokenizer must be, and be the one trained with."""
    beside, exported = assets_folder(state.config), _run_of(state) / "export"
    places = [assets_in(beside), assets_in(exported)]
    found = next((assets for assets in places if len(assets) == len(ASSETS)), places[0])
    if tokenizer_folder is not None:
        found["tokenizer"] = tokenizer_folder
    missing = [name for name in ASSETS if name not in found]
    if needs_speech and missing:
        raise UserError(
            f"{beside}: lacks {', '.join(missing)}, gone since the run that wrote {state.folder}; put the shards' folder back"
        )
    if "tokenizer" not in found:
        raise UserError(
            f"{beside / 'tokenizer'}: gone since the run that wrote {state.folder}; name the tokenizer with --tokenizer"
        )
    tokenizer, wanted = load_tokenizer(found["tokenizer"]), state.layout.tokenizer_hash
    if wanted and tokenizer.hash != wanted:
        raise UserError(
            f"{found['tokenizer']}: hash {tokenizer.hash[:12]}, but the checkpoint's token layout was made with {wanted[:12]}; "
            "name the tokenizer that the model was trained with (--tokenizer)"
        )
    return found
