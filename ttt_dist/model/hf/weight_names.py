"""Our names of weights as Hugging Face's, and back: fused projections are several weights there, adapters have peft's names."""

import torch
from torch import Tensor

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import head_dim, is_adapter

# Parts of a block, ours and Hugging Face's; qkv and gate_up are split apart from these.
BLOCK_PARTS = {
    "attention_norm": "input_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}
OUTER_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


def to_huggingface(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """One of our weights as Hugging Face's: a fused projection becomes two or three. A tied head becomes none."""
    if name == "head.weight" and config.tie_embeddings:
        return {}
    if name in OUTER_NAMES:
        return {OUTER_NAMES[name]: tensor}
    _, index, part = name.split(".", 2)
    part, kind = part.rsplit(".", 1)
    prefix = f"model.layers.{index}"
    if is_adapter(name):
        block = "self_attn" if part.startswith("attention.") else "mlp"
        return {f"{prefix}.{block}.{part.rpartition('.')[2]}.{kind}.weight": tensor}
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
