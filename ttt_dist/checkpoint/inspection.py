"""What a folder holds, in lines for people: a checkpoint, its universal form, or a model. Weights are not read."""

from math import prod
from pathlib import Path
from typing import Any

from ttt_dist.checkpoint.manager import METADATA, UNIVERSAL, latest
from ttt_dist.checkpoint.manifest import require_whole
from ttt_dist.checkpoint.saved_state import SavedState
from ttt_dist.checkpoint.universal import ADAM_STEP
from ttt_dist.config.model import ModelConfig
from ttt_dist.data.metadata import ASSETS
from ttt_dist.model.hf.families import CONFIG, LAYOUT, family_of, read_model_config
from ttt_dist.model.hf.tensor_files import TensorFolder
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError
from ttt_dist.util.similar_paths import remedy_for


def find_checkpoint(path: Path) -> Path | None:
    """`path` itself, or the newest complete checkpoint where it is a run folder; None where it is neither.

    Raises UserError for a run folder whose checkpoints are all broken.
    """
    if (path / METADATA).is_file():
        return path
    return latest(path / "checkpoints") or latest(path)


def inspect_folder(path: Path) -> tuple[list[str], UserError | None]:
    """What to tell of a folder, and why it is not whole. Raises UserError for one that is nothing of ours."""
    if (path / CONFIG).is_file() and not (path / METADATA).is_file():
        return _model_folder(path), None
    folder = find_checkpoint(path)
    if folder is None:
        remedy = remedy_for(path, f"name one that has {METADATA} or {CONFIG}")
        raise UserError(f"{path}: no checkpoint, run folder or model folder; {remedy}")
    return _checkpoint(folder)


def _checkpoint(folder: Path) -> tuple[list[str], UserError | None]:
    state = SavedState(folder)
    metadata, config = state.metadata, state.config
    is_universal, failure = metadata.get("form") == UNIVERSAL, None
    whole = "yes: files and sizes are those of the manifest"
    try:
        require_whole(folder)
    except UserError as error:
        whole, failure = f"no: {error}", error
    mesh = Mesh.of(config.parallel, metadata["world_size"], 0)
    counters = {
        name: value for name, value in metadata.get("counters", {}).items() if not isinstance(value, list | dict)
    }
    lines = {
        "form": "universal (safetensors)" if is_universal else "native (DeepSpeed's files)",
        "folder": str(folder),
        "step": f"{metadata['step']:,}" + (f"; Adam has made {metadata[ADAM_STEP]:,} updates" if is_universal else ""),
        "model": _model(config.model, sum(map(prod, state.shapes.values()))),
        "tokens": _tokens(state.layout),
        "saved by": f"{metadata['world_size']} process(es) ({mesh}), ZeRO {metadata['zero_stage']}",
        "precision": f"{config.train.precision}; weights and both moments of the optimizer in fp32",
        "counters": ", ".join(f"{name} {value}" for name, value in counters.items()) or "none",
        "files": _files(folder),
        "whole": whole,
    }
    return _aligned(lines), failure


def _model_folder(folder: Path) -> list[str]:
    tensors = TensorFolder(folder)
    infos = [tensors.info(name) for name in tensors]
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in infos})
    has_layout, has_assets = (folder / LAYOUT).is_file(), all((folder / name).exists() for name in ASSETS)
    lines = {
        "form": "model folder" + (", can be decoded" if has_assets and has_layout else ""),
        "folder": str(folder),
        "model": _model(read_model_config(folder), sum(prod(info.shape) for info in infos)),
        "tokens": _tokens(TokenLayout.load(folder / LAYOUT)) if has_layout else f"no {LAYOUT}: knows nothing of speech",
        "precision": ", ".join(dtypes),
        "files": _files(folder),
        "whole": f"yes: {len(infos)} tensors are where the headers of the files say",
    }
    return _aligned(lines)


def _model(config: ModelConfig, num_parameters: int) -> str:
    shape = ", ".join(
        f"{name} {getattr(config, name)}"
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size")
    )
    return f"{family_of(config)}, {num_parameters:,} parameters: {shape}{', tied' if config.tie_embeddings else ''}"


def _tokens(layout: TokenLayout) -> str:
    return (
        f"{layout.vocab_size:,} (padded to {layout.padded_vocab_size:,}), {layout.num_codes:,} audio codes, "
        f"tokenizer {layout.tokenizer} {layout.tokenizer_hash[:12]}"
    )


def _files(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{len(sizes):,}, {sum(sizes):,} bytes"


def _aligned(lines: dict[str, Any]) -> list[str]:
    return [f"{name:<11}{value}" for name, value in lines.items()]
