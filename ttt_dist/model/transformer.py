"""The decoder-only Transformer of Qwen2, Qwen3, Llama and Mistral: grouped-query attention, RoPE, RMSNorm, SwiGLU.

It sees token ids and the structure of the sequence, and draws nothing: the loss is a function of (weights, batch).
"""

import torch
from torch import Tensor, nn

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.attention.plan import AttentionPlan, attention_plan
from ttt_dist.model.layers import LayerFactory, LocalLayerFactory, SequenceSharding, swiglu
from ttt_dist.model.loss import LossSums, loss_rows
from ttt_dist.model.rotary import rotary_tables, split_heads
from ttt_dist.model.structure import BlockLayers, block_layers, embedding, head, head_dim, last_norm
from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.tokens import TokenLayout

Tables = tuple[Tensor, Tensor]


def rotary(config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> Tables:
    """The rotary tables that all blocks share, of positions [T]."""
    return rotary_tables(position_ids, head_dim(config), config.rope_theta, dtype, config.rope_scaling)


class Transformer(nn.Module):
    """Token ids to hidden states, logits and loss.

    `vocab_size` counts the rows of embedding and head; of these the first `num_tokens` (default: all) are real tokens,
    the others are padding and never predicted. `for_layout` takes both from a token layout.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, factory: LayerFactory | None = None, num_tokens: int | None = None
    ) -> None:
        super().__init__()
        factory = factory or LocalLayerFactory()
        self.config = config
        self.sequence_sharding = factory.sequence_sharding
        self.embed = embedding(config, factory, vocab_size)
        self.blocks = nn.ModuleList([Block(config, factory, index) for index in range(config.num_layers)])
        self.norm = last_norm(config, factory)
        tied_to = self.embed if config.tie_embeddings else None
        self.head = head(config, factory, vocab_size, num_tokens or vocab_size, tied_to)

    @classmethod
    def for_layout(cls, config: ModelConfig, layout: TokenLayout, factory: LayerFactory | None = None) -> "Transformer":
        """The model of a token layout, its vocabulary's padding left out of every prediction."""
        return cls(config, layout.padded_vocab_size, factory, layout.vocab_size)

    def forward(self, batch: Batch) -> LossSums:
        """Weighted sums of the losses of a batch."""
        plan = attention_plan(batch.sample_ids, batch.span_ids, self.dtype)
        tokens = self.sequence_sharding.local_tokens(batch.input_ids.numel())
        hidden = self.hidden(batch.input_ids.flatten()[tokens], batch.position_ids.flatten()[tokens], plan)
        sums = self.head(hidden, loss_rows(batch, tokens))
        assert isinstance(sums, LossSums)
        return sums

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        dtype = self.norm.weight.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan, needed: Tensor | None = None
    ) -> Tensor:
        """Normalised last hidden states [T, H] of ids [T], or of those of them that are needed [n]: [n, H].

        In the last block only keys and values of the others are computed.
        """
        x = self.embed(input_ids)
        tables = rotary(self.config, position_ids, x.dtype)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, tables, plan)
        if needed is None:
            x = last(x, tables, plan)
        else:
            assert isinstance(last, Block)
            x = last.only(needed, x, tables, plan)
        x = self.norm(x)
        assert isinstance(x, Tensor)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H], at least fp32; -inf for the vocabulary's padding."""
        logits = self.head(hidden)
        assert isinstance(logits, Tensor)
        return logits


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig, factory: LayerFactory, index: int) -> None:
        super().__init__()
        layers = block_layers(config, factory, index)
        self.attention_norm = layers.attention_norm
        self.attention = Attention(config, layers, factory.sequence_sharding)
        self.mlp_norm = layers.mlp_norm
        self.mlp = MLP(layers)

    def forward(self, x: Tensor, tables: Tables, plan: AttentionPlan) -> Tensor:
        x = x + self.attention(self.attention_norm(x), tables, plan)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def only(self, needed: Tensor, x: Tensor, tables: Tables, plan: AttentionPlan) -> Tensor:
        """The output at tokens `needed` [n] alone; all are attended to."""
        heads = self.attention.heads(self.attention_norm(x), tables, plan)
        x = x[needed] + self.attention.output(heads[needed])
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Attention(nn.Module):
    """Grouped-query attention; one projection gives queries, keys and values, group by group (see `split_heads`)."""

    def __init__(self, config: ModelConfig, layers: BlockLayers[nn.Module], split: SequenceSharding) -> None:
        super().__init__()
        self.group_size = config.num_heads // config.num_kv_heads
        self.head_dim = head_dim(config)
        self.qkv, self.qkv_lora = layers.qkv, layers.qkv_lora
        self.q_norm, self.k_norm = layers.q_norm, layers.k_norm
        self.sequence_sharding = split
        self.out, self.out_lora = layers.out, layers.out_lora

    def forward(self, x: Tensor, tables: Tables, plan: AttentionPlan) -> Tensor:
        return self.output(self.heads(x, tables, plan))

    def output(self, heads: Tensor) -> Tensor:
        """The output projection of what the heads have read."""
        return adapted(self.out, self.out_lora, heads)

    def heads(self, x: Tensor, tables: Tables, plan: AttentionPlan) -> Tensor:
        """What the heads have read, [T, heads x D], before the output projection."""
        qkv = adapted(self.qkv, self.qkv_lora, x)
        num_slots = qkv.shape[-1] // self.head_dim
        # A tensor-parallel rank has whole groups, or, where there are fewer groups than ranks, a part of one.
        num_groups = max(num_slots // (self.group_size + 2), 1)
        num_heads = num_slots - 2 * num_groups
        if self.q_norm is not None and self.k_norm is not None:
            groups = qkv.view(len(qkv), num_groups, -1, self.head_dim)
            q, k, v = groups.split([num_heads // num_groups, 1, 1], dim=2)
            qkv = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=2).flatten(1)
        q, k, v = split_heads(qkv, tables, num_heads, num_groups)
        return self.sequence_sharding.attend(q, k, v, plan).flatten(1)


class MLP(nn.Module):
    """SwiGLU; one projection gives gate and up."""

    def __init__(self, layers: BlockLayers[nn.Module]) -> None:
        super().__init__()
        self.gate_up, self.gate_up_lora = layers.gate_up, layers.gate_up_lora
        self.down, self.down_lora = layers.down, layers.down_lora

    def forward(self, x: Tensor) -> Tensor:
        return adapted(self.down, self.down_lora, swiglu(adapted(self.gate_up, self.gate_up_lora, x)))


def adapted(layer: nn.Module, lora: nn.Module | None, x: Tensor) -> Tensor:
    """The outputs of a linear layer, and what its adapters add to them."""
    out: Tensor = layer(x) if lora is None else layer(x) + lora(x)
    return out
