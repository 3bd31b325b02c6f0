"""One model over many processes: every way of splitting it, in the order in which they are applied."""

import deepspeed
from torch import nn

from ttt_dist.config.deepspeed import require_accepted
from ttt_dist.config.run import Config
from ttt_dist.model.layers import WeightSource
from ttt_dist.model.transformer import Block, Transformer
from ttt_dist.parallel import groups
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import apply_compile
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.zero import apply_zero, born_partitioned
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.memory import return_free_memory


def parallelize(config: Config, layout: TokenLayout, mesh: Mesh, weights: WeightSource) -> deepspeed.DeepSpeedEngine:
    """A model of these first weights, split over the processes of `mesh` and ready to train; collective.

    Needs a process group; `groups.leave` undoes what is made beside it.
    """
    require_accepted(config.deepspeed)
    mpu = groups.join(mesh)
    model = build_model(config, layout, mesh, mpu, weights)  # tensor, sequence and pipeline parallel from birth
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    apply_activation_checkpointing(
        blocks, config.model.hidden_size, config.train.activation_checkpointing, config.train.compile
    )
    if config.train.compile:
        apply_compile(blocks)  # after checkpointing: a block with what it computes again is one graph
    engine = apply_zero(model, config, layout, mesh, mpu)  # last: it takes hold of the parameters and their gradients
    return_free_memory()  # of weights as they were before they were rounded and flattened
    return engine


def build_model(
    config: Config, layout: TokenLayout, mesh: Mesh, mpu: groups.Mpu | None, weights: WeightSource
) -> nn.Module:
    """This process's layers, in slices where the mesh is tensor-parallel and of its own stage in a pipeline; collective."""
    factory = groups.layer_factory(mesh, weights, config.parallel.sequence_parallel, config.train.fp8)
    if mesh.pipeline > 1:
        from ttt_dist.parallel.pipeline import pipeline_module

        return pipeline_module(config.model, layout, factory, mesh)
    with born_partitioned(config, mesh, mpu):
        return Transformer.for_layout(config.model, layout, factory)
