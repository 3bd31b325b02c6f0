"""Weights under Hugging Face's names, and the model folder that training exports and decoding reads.

The folder holds config.json and model.safetensors as `transformers` reads them, and what speech needs beside: the token
layout, tokenizer/, codec/ and template.json. It is complete or absent.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttt_dist.config import ModelConfig
from ttt_dist.errors import UserError
from ttt_dist.files import fsync_folder, temporary_name, writing
from ttt_dist.model.layers import PlainFactory
from ttt_dist.model.transformer import Transformer, head_dim
from ttt_dist.sequence.objective import Objective
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout

T = TypeVar("T")

ASSETS = ("tokenizer", "codec", "template.json")
WEIGHTS = "model.safetensors"
MAX_POSITIONS = 32768  # a key that transformers asks for; rotary positions have no table to run out of

# Our field, Hugging Face's key.
CONFIG_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# Parts of a block, ours and Hugging Face's; qkv and gate_up are split apart from these.
BLOCK_PARTS = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}
OUTER_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


@dataclass
class ModelFolder:
    """An exported model and everything that decoding needs beside it."""

    model: Transformer
    layout: TokenLayout
    tokenizer: TextTokenizer
    template: TemplateSettings
    objective: Objective
    codec: Path
    """Folder of the codec, for `ttt_dist.audio.load_codec`."""


def to_huggingface(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """One of our weights as Hugging Face's: a fused projection becomes two or three. A tied head becomes none."""
    if name == "head.weight" and config.tie_embeddings:
        return {}
    if name in OUTER_NAMES:
        return {OUTER_NAMES[name]: tensor}
    _, index, part = name.split(".", 2)
    part, kind = part.rsplit(".", 1)
    prefix = f"model.layers.{index}"
    if part == "attention.qkv":
        return {
            f"{prefix}.self_attn.{letter}_proj.{kind}": piece
            for letter, piece in zip("qkv", _split_qkv(tensor, config), strict=True)
        }
    if part == "mlp.gate_up":
        return {
            f"{prefix}.mlp.{which}_proj.{kind}": piece
            for which, piece in zip(("gate", "up"), tensor.chunk(2), strict=True)
        }
    return {f"{prefix}.{BLOCK_PARTS[part]}.{kind}": tensor}


def huggingface_names(name: str, config: ModelConfig) -> list[str]:
    """Names that one of our weights is put together from, in the order that `from_huggingface` takes them."""
    rows = (config.num_heads + 2 * config.num_kv_heads) * head_dim(config)
    return list(to_huggingface(name, torch.empty(rows if "qkv" in name else 2, 0, device="meta"), config))


def from_huggingface(name: str, pieces: list[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of `to_huggingface`: our weight `name` from Hugging Face's."""
    if ".qkv." in name:
        groups = [piece.unflatten(0, (config.num_kv_heads, -1, head_dim(config))) for piece in pieces]
        return torch.cat(groups, dim=1).flatten(0, 2)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _split_qkv(tensor: Tensor, config: ModelConfig) -> list[Tensor]:
    """Query, key and value rows of a fused projection, which holds them group by group."""
    groups = tensor.unflatten(0, (config.num_kv_heads, -1, head_dim(config)))
    per_group = config.num_heads // config.num_kv_heads
    return [part.flatten(0, 2) for part in groups.split([per_group, 1, 1], dim=1)]


def config_json(config: ModelConfig, layout: TokenLayout, objective: Objective, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of config.json.

    `mask_token` and `audio_token_id_start` are read by the released TtT code; `objective` tells our decoder what the
    model was trained to do. Without biases the same weights are a Llama.
    """
    values = {key: getattr(config, field) for field, key in CONFIG_KEYS.items()}
    return values | {
        "architectures": ["Qwen2ForCausalLM" if config.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if config.qkv_bias else "llama",
        "head_dim": head_dim(config),
        "hidden_act": "silu",
        "vocab_size": layout.padded_vocab_size,
        "max_position_embeddings": MAX_POSITIONS,
        "eos_token_id": layout.im_end,
        "pad_token_id": layout.pad,
        "bos_token_id": None,
        "dtype": str(dtype).removeprefix("torch."),
        "mask_token": layout.mask,
        "audio_token_id_start": int(layout.is_audio.argmax()),
        "objective": {"kind": objective.kind, "prompt_audio": objective.prompt_audio},
    }


def export_folder(
    folder: str | Path,
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    layout: TokenLayout,
    objective: Objective,
    assets: str | Path,
) -> None:
    """Write a model folder; an older one at that place is replaced when the new one is complete.

    `weights` has our names (of a tied head, one of its two). `assets` is a folder with tokenizer/, codec/ and
    template.json, such as that of the shards. Raises UserError where one of them is missing or the disk is full.
    """
    folder, assets = Path(folder), Path(assets)
    for name in ASSETS:
        if not (assets / name).exists():
            raise UserError(f"{assets / name}: missing; an exported model needs {', '.join(ASSETS)} beside its shards")
    pairs = weights.items() if isinstance(weights, Mapping) else weights
    tensors = {
        key: piece for name, tensor in pairs for key, piece in to_huggingface(name, tensor.detach(), config).items()
    }
    dtype = next(iter(tensors.values())).dtype
    temporary = temporary_name(folder)
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            _save_weights(tensors, temporary / WEIGHTS)
            (temporary / "config.json").write_text(
                json.dumps(config_json(config, layout, objective, dtype), indent=1) + "\n"
            )
            layout.save(temporary / "token_layout.json")
            _copy_assets(assets, temporary)
            _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_folder(folder: str | Path, dtype: torch.dtype = torch.float32) -> ModelFolder:
    """Read an exported model folder. Raises UserError naming the file that is missing or does not fit the others."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder; name the export/ folder of a run")
    layout = TokenLayout.load(folder / "token_layout.json")
    values = _read_json(folder / "config.json")
    config = _model_config(values, folder / "config.json")
    if values.get("vocab_size") != layout.padded_vocab_size:
        raise UserError(
            f"{folder}: config.json has vocab_size {values.get('vocab_size')}, token_layout.json "
            f"{layout.padded_vocab_size}; export the model again"
        )
    tokenizer = load_tokenizer(folder / "tokenizer")
    if layout.tokenizer_hash and tokenizer.hash != layout.tokenizer_hash:
        raise UserError(
            f"{folder / 'tokenizer'}: hash {tokenizer.hash[:12]}, but the token layout was made with "
            f"{layout.tokenizer_hash[:12]}; copy the tokenizer that the model was trained with"
        )
    model = Transformer.for_layout(config, layout, PlainFactory(FolderWeights(folder, config))).to(dtype)
    template, objective = _read_json(folder / "template.json"), values.get("objective", {})
    return ModelFolder(
        model.eval().requires_grad_(False),
        layout,
        tokenizer,
        _build(TemplateSettings, template, folder / "template.json"),
        _build(Objective, objective, folder / "config.json"),
        folder / "codec",
    )


class FolderWeights:
    """The weights of a model folder, one parameter at a time: a `WeightSource`. Raises UserError on what does not fit."""

    def __init__(self, folder: str | Path, config: ModelConfig) -> None:
        self.path, self.config = Path(folder) / WEIGHTS, config

    def __call__(self, name: str, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                pieces = [file.get_tensor(key) for key in huggingface_names(name, self.config)]
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self.path}: cannot be read as the model's weights ({error}); export the model again"
            ) from error
        weight = from_huggingface(name, pieces, self.config)
        if weight.shape != shape:
            raise UserError(f"{self.path}: {name} is {list(weight.shape)}, config.json says {list(shape)}")
        return weight


def _save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # its only failure here is the disk's
        raise UserError(
            f"{path.parent}: the weights cannot be written ({error}); free some space, or write elsewhere"
        ) from error


def _copy_assets(assets: Path, target: Path) -> None:
    for name in ASSETS:
        if (assets / name).is_dir():
            shutil.copytree(assets / name, target / name)
        else:
            shutil.copyfile(assets / name, target / name)


def _replace_folder(new: Path, folder: Path) -> None:
    """Force the finished folder to the disk and put it at its place; the old one goes last."""
    for path in _files(new):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _model_config(values: dict[str, Any], path: Path) -> ModelConfig:
    architecture = (values.get("architectures") or ["none"])[0]
    if architecture not in ("Qwen2ForCausalLM", "LlamaForCausalLM"):
        raise UserError(f"{path}: architecture {architecture} is not supported; export a Qwen2ForCausalLM")
    # transformers 5 saves rope_theta inside rope_parameters.
    values = (values.get("rope_parameters") or {}) | values
    missing = [key for key in CONFIG_KEYS.values() if key not in values]
    if missing:
        raise UserError(f"{path}: lacks '{missing[0]}'; export the model again")
    fields = {field: values[key] for field, key in CONFIG_KEYS.items()}
    return ModelConfig(**fields, head_dim=values.get("head_dim"), qkv_bias=architecture == "Qwen2ForCausalLM")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or not readable as JSON ({error}); export the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object; export the model again")
    return values


def _build(kind: type[T], values: dict[str, Any], path: Path) -> T:
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{path}: not the settings of this version ({error}); export the model again") from error
