"""The pipeline's layers: which of them a stage holds, and what weights are called in them; without building anything.

DeepSpeed numbers the layers of a PipelineModule from 0: the embedding, the blocks, the last norm, the head. A weight is
called by layer and by its name in there (`3.block.mlp.down.weight` is our `blocks.2.mlp.down.weight`), in parameters and
files alike. A tied embedding stands in the first and the last layer and belongs to neither: `tied_modules.embed.embed.weight`.
"""

from collections.abc import Collection
from math import prod

from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel.partition import shard_shape
from ttt_dist.sequence.tokens import TokenLayout

TIED = "embed"
"""What DeepSpeed is told to call the layer that is shared by the first stage and the last."""


def layer_and_key(name: str, num_layers: int) -> tuple[int, str]:
    """Layer of the PipelineModule that a weight belongs to (a tied head is the embedding's), and its name in that layer."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) + 1, ".".join(["block", *parts[2:]])
    return {"embed": 0, "norm": num_layers + 1, "head": num_layers + 2}[parts[0]], name


def pipeline_name(name: str, model: ModelConfig) -> str:
    """A weight's name in the PipelineModule."""
    layer, key = layer_and_key(name, model.num_layers)
    return f"tied_modules.{TIED}.{key}" if layer == 0 and model.tie_embeddings else f"{layer}.{key}"


def weight_name(pipeline_name: str, num_layers: int) -> str:
    """The inverse of `pipeline_name`."""
    if pipeline_name.startswith("tied_modules."):
        return pipeline_name.split(".", 2)[2]
    layer, key = pipeline_name.split(".", 1)
    return f"blocks.{int(layer) - 1}.{key.removeprefix('block.')}" if 1 <= int(layer) <= num_layers else key


def layer_sizes(
    model: ModelConfig, layout: TokenLayout, tensor: int, of: Collection[str] | None = None
) -> list[list[int]]:
    """Elements of each parameter, or of those in `of`, of the pipeline's layers (embedding, blocks, norm, head), in one
    tensor-parallel rank.

    Matrices are divided as `ttt_dist.parallel.partition` says, the vocabulary padded; vectors of norms are whole on every
    rank. A tied head counts as a layer of its own: a pipeline's last stage has a copy.
    """
    names = ["embed", *(f"blocks.{index}" for index in range(model.num_layers)), "norm", "head"]
    layers: dict[str, list[int]] = {name: [] for name in names}
    for name, shape in parameter_shapes(model, layout.padded_vocab_size).items():
        parts = name.split(".")
        layer = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        if of is None or name in of:
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
