"""Which layers a stage of the pipeline holds: DeepSpeed's balance by parameters, without building anything."""

from math import prod

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.partition import shard_shape
from ttt_dist.sequence.tokens import TokenLayout


def layer_sizes(model: ModelConfig, layout: TokenLayout, tensor: int) -> list[list[int]]:
    """Elements of each parameter of the pipeline's layers (embedding, blocks, norm, head), in one tensor-parallel rank.

    Matrices are divided as `ttt_dist.parallel.partition` says, the vocabulary padded; vectors of norms are whole on every
    rank. A tied head counts as a layer of its own: a pipeline's last stage has a copy.
    """
    names = ["embed", *(f"blocks.{index}" for index in range(model.num_layers)), "norm", "head"]
    layers: dict[str, list[int]] = {name: [] for name in names}
    for name, shape in parameter_shapes(model, layout.padded_vocab_size).items():
        parts = name.split(".")
        layer = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        layers[layer].append(prod(shard_shape(name, shape, tensor)))
    if model.tie_embeddings:
        layers["head"] = layers["embed"]
    return list(layers.values())


def stage_bounds(sizes: list[int], num_stages: int) -> list[int]:
    """First layer of each stage, and the end: DeepSpeed's own balance by parameters."""
    if num_stages == 1:
        return [0, len(sizes)]
    from deepspeed.runtime.utils import partition_balanced  # seconds to import: only where it is needed

    return [int(bound) for bound in partition_balanced(sizes, num_stages)]
