"""The two sides of `benchmarks.train_step`: this project's model on packs, and what it is measured against.

The baseline trains as the released code does: Hugging Face's Qwen2 with SDPA, a dense 4-D mask, every sample in a row
of its own padded to 2,048, and cross-entropy over full logits, once for text and once for audio, in the model's type.
Both start from the same weights and see the same samples with the same noise, so their losses must agree.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.mixture import pack_samples
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention.plan import AttentionPlan, attend, attention_plan
from ttt_dist.model.hf.weight_names import to_huggingface
from ttt_dist.model.loss import loss_rows
from ttt_dist.model.structure import head_dim
from ttt_dist.model.transformer import Transformer
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import apply_compile
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import dense_mask

PADDED_LENGTH = 2048  # the released code's
SMALL = ModelConfig(
    hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=2, ffn_hidden_size=768, tie_embeddings=True
)
QWEN_1_5B = ModelConfig(
    hidden_size=1536, num_layers=28, num_heads=12, num_kv_heads=2, ffn_hidden_size=8960, tie_embeddings=True
)


def setting(device: str) -> tuple[ModelConfig, torch.dtype]:
    """Shape and type that are measured on a device."""
    return (SMALL, torch.float32) if device == "cpu" else (QWEN_1_5B, torch.bfloat16)


class Contestant(Protocol):
    """What the benchmark asks of a side."""

    @property
    def model(self) -> nn.Module: ...

    def batches(self, samples: list[Sample], size: int) -> list[Batch]:
        """The samples in micro-batches of `size` rows, on the CPU."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the losses of a batch."""
        ...

    def visibility(self, batch: Batch) -> Any:
        """What attention of all layers needs to know of a batch: a plan or a mask."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, visibility: Any) -> Tensor:
        """Attention of one layer, q [T, H, D] and k, v [T, G, D] to [T, H, D]."""
        ...

    def head(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The loss of last hidden states [T, hidden_size]."""
        ...


class Ours:
    """Packs of `seq_len`, block-sparse or bucketed attention, the loss at positions that count."""

    def __init__(self, layout: TokenLayout, device: str, seq_len: int, checkpointing: str, compiled: bool) -> None:
        config, dtype = setting(device)
        self.layout, self.seq_len = layout, seq_len
        self.model = Transformer.for_layout(config, layout).to(device, dtype)
        apply_activation_checkpointing(self.model.blocks, config.hidden_size, checkpointing, compiled)
        if compiled:
            apply_compile(self.model.blocks)

    def batches(self, samples: list[Sample], size: int) -> list[Batch]:
        packs = pack_samples(samples, self.seq_len, seed=0)
        packs += [[]] * (-len(packs) % size)  # every micro-batch has one shape
        return _collate(packs, size, self.layout, self.seq_len)

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.model(batch).loss
        return loss

    def visibility(self, batch: Batch) -> AttentionPlan:
        return attention_plan(batch.sample_ids, batch.span_ids, self.model.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, visibility: AttentionPlan) -> Tensor:
        return attend(q, k, v, visibility)

    def head(self, hidden: Tensor, batch: Batch) -> Tensor:
        loss: Tensor = self.model.head(hidden, loss_rows(batch, slice(0, len(hidden)))).loss
        return loss


class Baseline:
    """One padded row per sample, dense masks, full logits."""

    def __init__(self, layout: TokenLayout, device: str) -> None:
        config, dtype = setting(device)
        self.layout = layout
        model: Any = _hugging_face(config, layout)  # transformers' own `to` has no useful type
        self.model = model.to(device, dtype)

    def batches(self, samples: list[Sample], size: int) -> list[Batch]:
        return _collate([[sample] for sample in samples], size, self.layout, PADDED_LENGTH)

    def loss(self, batch: Batch) -> Tensor:
        mask = self.visibility(batch)
        out = self.model(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False)
        return _full_loss(out.logits.flatten(0, 1), batch)

    def visibility(self, batch: Batch) -> Tensor:
        return additive_mask(batch, self.model.dtype)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, visibility: Tensor) -> Tensor:
        return dense_attention(q, k, v, visibility)

    def head(self, hidden: Tensor, batch: Batch) -> Tensor:
        return _full_loss(F.linear(hidden, self.model.lm_head.weight), batch)


def additive_mask(batch: Batch, dtype: torch.dtype) -> Tensor:
    """0 or -inf, [B, 1, S, S]. Padding sees itself: softmax must look somewhere."""
    visible = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)
    visible |= torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
    return (
        torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf).unsqueeze(1)
    )


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B * S, H, D] over k, v [B * S, G, D] under an additive mask [B, 1, S, S]."""
    shape = mask.shape[0], mask.shape[-1]
    q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)


def _collate(rows: list[list[Sample]], size: int, layout: TokenLayout, seq_len: int) -> list[Batch]:
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    # The default objective draws noise and mixing per sample, so that both sides meet the same.
    return [collate(group, layout, Objective(preset="paper"), 0, [0] * len(group), seq_len) for group in groups]


def _full_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Both cross-entropies over all logits [T, V], each at every position."""
    ar = F.cross_entropy(logits, batch.ar_targets.flatten(), reduction="none")
    nar = F.cross_entropy(logits, batch.nar_targets.flatten(), reduction="none")
    return (ar * batch.ar_weights.flatten() + nar * batch.nar_weights.flatten()).sum()


def _hugging_face(config: ModelConfig, layout: TokenLayout) -> nn.Module:
    """Qwen2 with the weights that `Ours` starts from; its vocabulary has no padding rows."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # seconds to import, and only this side needs them

    settings: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.ffn_hidden_size,
        "head_dim": head_dim(config),
        "vocab_size": layout.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "sdpa",
    }
    theirs = Qwen2ForCausalLM(Qwen2Config(**settings))
    for name, parameter in Transformer.for_layout(config, layout).named_parameters():
        for key, piece in to_huggingface(name, parameter.detach(), config).items():
            target = theirs.get_parameter(key).data
            target.copy_(piece[: len(target)])
    return theirs
