"""The Transformer as a DeepSpeed PipelineModule: embedding, blocks, and the end with norm, head and loss.

What stages hand on is the hidden states [T, H] and the batch itself as integers: each stage builds the attention plan
anew, and the last one finds its targets there. DeepSpeed balances the stages by their parameters.

DeepSpeed's part of the bargain: between stages go tuples of tensors, of which floating ones get a gradient and integers
none; every stage is told the shapes once, at the first micro-batch, so all micro-batches have the same. A schedule of
instructions (1F1B) interleaves forward and backward passes; what is called here is one whole batch, updates included.
"""

import io
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor, nn

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.attention.plan import AttentionPlan, attention_plan
from ttt_dist.model.layers import LayerFactory
from ttt_dist.model.loss import loss_rows, metric_names
from ttt_dist.model.structure import embedding, head, last_norm
from ttt_dist.model.transformer import Block, rotary
from ttt_dist.parallel.deepspeed_adapter import before_update
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.stages import TIED, weight_name
from ttt_dist.sequence.batch import TENSORS, Batch, TargetIndices
from ttt_dist.sequence.tokens import TokenLayout

logger = logging.getLogger(__name__)

UNUSED = "unused_"
Handed = tuple[Tensor, Tensor]
"""Hidden states [T, H], and the batch as integers [len(TENSORS), B, S]."""


def pack_batch(batch: Batch) -> Tensor:
    """The tensors of a batch as one int32 [len(TENSORS), B, S]: weights by their bits, as integers take no part in gradients.

    One tensor and not ten: each that is handed on is a message of its own between stages, in both directions.
    """
    tensors = (getattr(batch, name) for name in TENSORS)
    return torch.stack([t.view(torch.int32) if t.is_floating_point() else t.to(torch.int32) for t in tensors])


def unpack_batch(packed: Tensor) -> Batch:
    """The inverse of `pack_batch`; what is no tensor of [B, S] is lost."""
    values: dict[str, Any] = {
        name: packed[row].view(torch.float32) if name.endswith("_weights") else packed[row].long()
        for row, name in enumerate(TENSORS)
    }
    return Batch(**values, num_loss_units=0.0)


class LossTotal:
    """Where the last stage takes the scale of a step's losses from, and adds up their sums.

    It also has the batches of the step as they are on the host: where their targets are is found there, as looking for
    them on the device would wait for all that is queued.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self.sums = torch.zeros(0, dtype=torch.float64)
        self._coming: deque[Batch] = deque()

    def begin(self, batches: Sequence[Batch], scale: float = 1.0) -> None:
        """Before a step: its micro-batches, which come in this order."""
        self.scale, self._coming = scale, deque(batches)
        self.sums = torch.zeros(len(metric_names(batches[0].num_groups)), dtype=torch.float64)

    def __call__(self, end: nn.Module, handed: Handed) -> Tensor:
        """The scaled loss of one micro-batch; `end` has the head."""
        # The schedule runs the last stage's micro-batches in the order in which they were given, so the one at hand is the
        # next of those that were kept; the loader gives every stage the same ones.
        hidden, packed = handed
        batch, on_host = unpack_batch(packed), self._coming.popleft()
        batch.target_indices = (on_host.target_indices or TargetIndices.of(on_host)).to(packed.device)
        batch.term_weights, batch.group_units = on_host.term_weights, on_host.group_units
        output = end.get_submodule("head")(hidden, loss_rows(batch, slice(None)))
        self.sums = self.sums.to(hidden.device) + output.metric_sums()
        loss: Tensor = output.loss * self.scale
        return loss


class FirstLayer(nn.Module):
    """The embedding. Where the head shares its weight, the last stage has a copy of this layer and calls its head."""

    def __init__(self, config: ModelConfig, layout: TokenLayout, factory: LayerFactory) -> None:
        super().__init__()
        self.embed = embedding(config, factory, layout.padded_vocab_size)
        if config.tie_embeddings:
            self.head = head(config, factory, layout.padded_vocab_size, layout.vocab_size, self.embed)

    def forward(self, packed: Tensor) -> Handed:
        hidden = self.embed(unpack_batch(packed).input_ids.flatten())
        if not hidden.requires_grad and torch.is_grad_enabled():
            hidden.requires_grad_()  # DeepSpeed goes back through all that was handed on, frozen or not
        return hidden, packed


class LastLayer(nn.Module):
    """A head of its own weight."""

    def __init__(self, config: ModelConfig, layout: TokenLayout, factory: LayerFactory, total: LossTotal) -> None:
        super().__init__()
        self.head = head(config, factory, layout.padded_vocab_size, layout.vocab_size, None)
        self.total = total

    def forward(self, handed: Handed) -> Tensor:
        return self.total(self, handed)


class PlanCache:
    """The attention plan and rotary tables of the micro-batch at hand, made once for all blocks of a stage."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.packed: Tensor | None = None

    def get(self, packed: Tensor, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], AttentionPlan]:
        # By identity: the blocks of a stage hand the very tensor on, and a new micro-batch comes in a new one.
        if packed is not self.packed:
            batch = unpack_batch(packed)
            self.tables = rotary(self.config, batch.position_ids.flatten(), dtype)
            self.plan = attention_plan(batch.sample_ids, batch.span_ids, dtype)
            self.packed = packed
        return self.tables, self.plan


class PipelineBlock(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory, index: int, cache: PlanCache) -> None:
        super().__init__()
        self.block = Block(config, factory, index)
        self.cache = cache

    def forward(self, handed: Handed) -> Handed:
        x, packed = handed
        return self.block(x, *self.cache.get(packed, x.dtype)), packed


class FinalNorm(nn.Module):
    def __init__(self, config: ModelConfig, factory: LayerFactory) -> None:
        super().__init__()
        self.norm = last_norm(config, factory)

    def forward(self, handed: Handed) -> Handed:
        return self.norm(handed[0]), handed[1]


def pipeline_module(config: ModelConfig, layout: TokenLayout, factory: LayerFactory, mesh: Mesh) -> PipelineModule:
    """This process's stage; collective. Needs Megatron's process groups where the mesh is tensor-parallel."""
    cache, total = (
        PlanCache(config),
        LossTotal(),
    )  # specs are built by the stage that holds them: cache and total are its own
    blocks = [LayerSpec(PipelineBlock, config, factory, index, cache) for index in range(config.num_layers)]
    layers = [*blocks, LayerSpec(FinalNorm, config, factory)]
    ends = (config, layout, factory)
    if config.tie_embeddings:
        # One layer in two places: each end has a copy, and DeepSpeed sums their gradients before the update.
        first = TiedLayerSpec(TIED, FirstLayer, *ends, tied_weight_attr="embed.weight")
        last = TiedLayerSpec(TIED, FirstLayer, *ends, forward_fn=total, tied_weight_attr="embed.weight")
    else:
        first, last = LayerSpec(FirstLayer, *ends), LayerSpec(LastLayer, *ends, total)
    printed = io.StringIO()
    with redirect_stdout(printed):
        module = PipelineModule(
            [first, *layers, last],
            topology=PipeModelDataParallelTopology(num_pp=mesh.pipeline, num_mp=mesh.tensor, num_dp=mesh.data),
            partition_method="parameters",
        )
    logger.info("PipelineModule: %s", printed.getvalue())
    module.total = total
    return module


def unused_parameter(module: nn.Module, group: int) -> nn.Parameter:
    """A number for the optimizer's `group` of which this stage has no weight (an embedding alone has no vector).

    DeepSpeed sums norms over the stages group by group: one that has none would leave the others waiting.
    """
    unused = nn.Parameter(torch.zeros(1, device=next(module.parameters()).device))
    module.register_parameter(f"{UNUSED}{group}", unused)
    return unused


def train_pipeline(
    engine: PipelineEngine, batches: Sequence[Batch], scale: float, charge: Callable[[str], None]
) -> Tensor:
    """Accumulate the gradients of `scale` * loss over `batches` and update; collective.

    Returns this process's part of the sums of `LossSums.metric_sums`, fp64: 0 but on the last stage.
    `charge` hears when forward and backward passes, which take turns, have ended.
    """
    total: LossTotal = engine.module.total
    total.begin(batches, scale * engine.gradient_accumulation_steps())  # DeepSpeed divides by the steps
    with before_update(engine, lambda: charge("forward_backward")):
        engine.train_batch(data_iter=_micro_batches(batches))
    return total.sums.to(engine.device)


def evaluate_pipeline(engine: PipelineEngine, batches: Sequence[Batch]) -> Tensor:
    """`LossSums.metric_sums` over `batches` without an update, 0 but on the last stage; collective."""
    total: LossTotal = engine.module.total
    total.begin(batches)
    engine.eval_batch(_micro_batches(batches), reduce_output=None, bcast_loss=False, num_micro_batches=len(batches))
    return total.sums.to(engine.device)


def own_parameters(module: PipelineModule, num_layers: int) -> dict[str, nn.Parameter]:
    """This stage's parameters by the Transformer's names."""
    named = module.named_parameters()
    return {weight_name(name, num_layers): value for name, value in named if not name.startswith(UNUSED)}


def _micro_batches(batches: Sequence[Batch]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    return ((pack_batch(batch), ()) for batch in batches)
