"""Weights under Hugging Face's names, and the model folder that training exports and decoding reads.

The folder holds safetensors as `transformers` reads them, and what `export_files` writes beside. It is complete or absent. A
folder imported for training has no codec, template and decoding yet.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_dist.config.decode import DEFAULTS, DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.data.metadata import ASSETS
from ttt_dist.data.speakers import read_speakers
from ttt_dist.model.hf.adapter import Adaptation, Merged
from ttt_dist.model.hf.export_files import assets_in, write_export_files
from ttt_dist.model.hf.families import (
    CONFIG,
    LAYOUT,
    MAX_POSITIONS,
    MAX_SHARD_BYTES,
    build_section,
    config_json,
    model_config,
    read_json,
    stated_objective,
)
from ttt_dist.model.hf.tensor_files import TensorFolder, TensorWriter
from ttt_dist.model.hf.weight_names import OUTER_NAMES, from_huggingface, huggingface_names, to_huggingface
from ttt_dist.model.layers import LocalLayerFactory, WeightSource
from ttt_dist.model.structure import head_dim, is_adapter, parameter_shapes
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import fsync_folder, remove_leftovers, temporary_name, writing
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease
from ttt_dist.util.similar_paths import remedy_for


@dataclass(kw_only=True)
class ModelFolder:
    """An exported model and everything that decoding needs beside it."""

    model: Transformer
    layout: TokenLayout
    tokenizer: TextTokenizer
    template: TemplateSettings
    objective: Objective
    codec: Path
    """Folder of the codec, for `ttt_dist.audio.load_codec`."""
    max_length: int = MAX_POSITIONS
    """The longest sequence that the model takes, in tokens."""
    speakers: list[str] = field(default_factory=list)
    """Names that its prompts may say, commonest first; none where they are not known."""

    @property
    def usual_speaker(self) -> str | None:
        """Who speaks where nobody is named: a model whose prompts name a speaker has learnt little of those that do not."""
        return next(iter(self.speakers), None) if self.template.name_speaker else None


def expected_tensors(
    config: ModelConfig, num_rows: int, of: Collection[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes of all weights of a model with `num_rows` rows of embedding and head, or of some of ours."""
    shapes = {name: shape for name, shape in parameter_shapes(config, num_rows).items() if of is None or name in of}
    pairs = (to_huggingface(name, torch.empty(shape, device="meta"), config) for name, shape in shapes.items())
    return {name: tuple(piece.shape) for pieces in pairs for name, piece in pieces.items()}


def export_folder(
    folder: str | Path,
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    layout: TokenLayout,
    objective: Objective,
    assets: str | Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    decoding: DecodeSettings = DEFAULTS,
    base_eos: Sequence[int] = (),
    story: Mapping[str, str] | None = None,
    speakers: Sequence[str] = (),
    adaptation: Adaptation | None = None,
) -> None:
    """Write a model folder; an older one at that place is replaced when the new one is complete.

    `weights` has our names (of a tied head, one of its two); of an iterator, one weight at a time is in memory. `assets` is
    a folder with tokenizer/, codec/ and template.json, such as that of the shards; `decoding` is how the model is decoded
    where nobody says otherwise, `base_eos` what ended a text of the model that training began with, `story` what the
    model card says of the training, and `speakers` whom its prompts may name. Adapters are merged, and with an
    `adaptation` written for peft beside. Raises UserError where an asset is missing or
    the disk is full.
    """
    found = assets_in(Path(assets))
    for name in ASSETS:
        if name not in found:
            raise UserError(
                f"{Path(assets) / name}: missing; an exported model needs {', '.join(ASSETS)} beside its shards"
            )
    with new_folder(folder) as place:
        merged = Merged(weights.items() if isinstance(weights, Mapping) else weights, config, adaptation)
        num_rows, dtype = write_weights(place, merged, merged.config, max_shard_bytes)
        merged.write_adapter(place, layout, dtype)
        values = config_json(config, layout, num_rows, dtype, objective)
        write_export_files(place, values, layout, found, decoding, base_eos, story or {}, speakers)


def load_folder(folder: str | Path, dtype: torch.dtype | None = None, device: str | None = None) -> ModelFolder:
    """Read an exported model folder: on CUDA in bf16 where there is any, else on the CPU in fp32.

    Raises UserError naming the file that is missing or does not fit the others.
    """
    folder, device = Path(folder), device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)

    def read(config: ModelConfig, layout: TokenLayout) -> Transformer:
        factory = LocalLayerFactory(FolderWeights(folder, config, layout), dtype=dtype)
        return Transformer.for_layout(config, layout, factory).to(device)

    return open_folder(folder, read)


def open_folder(folder: Path, model: Callable[[ModelConfig, TokenLayout], Transformer]) -> ModelFolder:
    """What lies in an exported model folder, with the weights that `model` gives. Raises UserError as `load_folder`."""
    if not folder.is_dir():
        remedy = remedy_for(folder, "name the export/ folder of a run")
        raise UserError(f"{folder}: no such model folder; {remedy}")
    layout = TokenLayout.load(folder / LAYOUT)
    values = read_json(folder / CONFIG)
    config = model_config(values, folder / CONFIG)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if layout.tokenizer_hash and tokenizer.hash != layout.tokenizer_hash:
        raise UserError(
            f"{folder / 'tokenizer'}: hash {tokenizer.hash[:12]}, but the token layout was made with "
            f"{layout.tokenizer_hash[:12]}; copy the tokenizer that the model was trained with"
        )
    for name in ASSETS:
        if not (folder / name).exists():
            raise UserError(
                f"{folder / name}: missing; an imported model is trained first, and its run's export decoded"
            )
    template = read_json(folder / "template.json")
    return ModelFolder(
        model=model(config, layout).eval().requires_grad_(False),
        layout=layout,
        tokenizer=tokenizer,
        template=build_section(TemplateSettings, template, folder / "template.json"),
        objective=stated_objective(values, folder / CONFIG) or Objective(preset="paper"),
        codec=folder / "codec",
        max_length=int(values.get("max_position_embeddings") or MAX_POSITIONS),
        speakers=read_speakers(folder),
    )


class FolderWeights:
    """The weights of a model folder, one parameter at a time: a `WeightSource`. Raises UserError on what does not fit.

    With a layout, embedding and head may have any number of rows that covers its tokens: what the model asks for beyond
    the folder's rows is padding, and zero. Without one, shapes must be as asked.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ModelConfig,
        layout: TokenLayout | None = None,
        adapters: WeightSource | None = None,
    ) -> None:
        """`adapters` has those that the folder lacks, where the model begins to be adapted."""
        self.tensors, self.config, self.layout, self.adapters = TensorFolder(folder), config, layout, adapters

    def __call__(self, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        if self.adapters is not None and is_adapter(name):
            return self.adapters(name, shape, std, mean)
        if name == "head.weight" and self.config.tie_embeddings:
            name = "embed.weight"
        wanted = to_huggingface(name, torch.empty(shape, device="meta"), self.config)
        if self.layout is not None and name in ("embed.weight", "head.weight"):
            return self._rows(OUTER_NAMES[name], shape, self.layout.vocab_size)
        pieces = [self._read(key, tuple(piece.shape)) for key, piece in wanted.items()]
        return from_huggingface(name, pieces, self.config)

    def rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a weight of `shape`; no other ones are read, but for those of the same key-value heads."""
        if ".gate_up." in name:
            half = shape[0] // 2
            spans = [(start, min(stop, half)), (max(start - half, 0), stop - half)]
            names = huggingface_names(name, self.config)
            pieces = [
                self._read(key, (half, *shape[1:]), *span)
                for key, span in zip(names, spans, strict=True)
                if span[0] < span[1]
            ]
            return from_huggingface(name, pieces, self.config)
        if ".qkv." in name:
            return self._qkv_rows(name, shape, start, stop)
        if name == "head.weight" and self.config.tie_embeddings:
            name = "embed.weight"
        [key] = huggingface_names(name, self.config)
        return self._read(key, shape, start, stop)

    def _qkv_rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Rows of a fused projection lie by key-value heads: those of whole heads are read."""
        per_head = shape[0] // self.config.num_kv_heads
        first, last = start // per_head, -(-stop // per_head)
        wanted = to_huggingface(name, torch.empty(shape, device="meta"), self.config)
        rows = [(key, piece.shape, len(piece) // self.config.num_kv_heads) for key, piece in wanted.items()]
        pieces = [self._read(key, tuple(whole), first * size, last * size) for key, whole, size in rows]
        groups = [piece.unflatten(0, (last - first, -1, head_dim(self.config))) for piece in pieces]
        return torch.cat(groups, dim=1).flatten(0, 2)[start - first * per_head : stop - first * per_head]

    def _read(self, key: str, shape: tuple[int, ...], start: int = 0, stop: int | None = None) -> Tensor:
        path, found, _ = self.tensors.info(key)
        if found != shape:
            raise UserError(f"{path}: {key} is {list(found)}, but the model's settings say {list(shape)}; correct them")
        return self.tensors.read(key, start, None if stop == shape[0] else stop)

    def _rows(self, key: str, shape: tuple[int, ...], num_tokens: int) -> Tensor:
        """A matrix of the vocabulary, with zero rows put to its end."""
        path, found, _ = self.tensors.info(key)
        if found[1:] != shape[1:] or found[0] < num_tokens:
            raise UserError(
                f"{path}: {key} is {list(found)}, but the vocabulary has {num_tokens} tokens of width {shape[1]}; "
                "take the model and the layout of one import or export"
            )
        rows = self.tensors.read(key, 0, min(found[0], shape[0]))
        return F.pad(rows, (0, 0, 0, shape[0] - len(rows))) if len(rows) < shape[0] else rows


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when complete and goes without a trace on any error.

    What a killed process left there is put right first; another one that is writing there is waited for.
    Raises UserError naming `folder` where the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    temporary = temporary_name(folder)
    with lease(folder, wait=True), writing(folder):
        if _old(folder).is_dir() and not _old(folder).is_symlink() and not folder.exists():
            os.replace(_old(folder), folder)
        remove_leftovers(folder)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            _replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_weights(
    place: Path,
    weights: Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    of: Collection[str] | None = None,
) -> tuple[int, torch.dtype]:
    """Write all weights of a model, or those of `of`, given by our names; number of rows of the vocabulary, and the type of the
    last weight."""
    num_rows, dtype = 0, torch.float32
    with closing(TensorWriter(place, max_shard_bytes)) as writer:
        for name, tensor in weights:
            dtype = tensor.dtype
            if name in ("embed.weight", "head.weight"):
                num_rows = len(tensor)
            for key, piece in to_huggingface(name, tensor, config).items():
                writer.add(key, piece.shape, dtype, [piece])
        missing = set(expected_tensors(config, num_rows, of)).symmetric_difference(writer.names)
        assert not missing, f"not exactly the weights of the model: {sorted(missing)}"
        writer.finish()
    return num_rows, dtype


def _replace_folder(new: Path, folder: Path) -> None:
    """Force the finished folder to the disk and put it at its place; the old one goes last."""
    for path in _files(new):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        os.replace(folder, _old(folder))
    os.replace(new, folder)
    fsync_folder(folder.parent)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    """What a folder is called while the new one takes its place; one of its leftovers."""
    return folder.with_name(f".{folder.name}.old.tmp")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
