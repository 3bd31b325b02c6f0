"""Weights, gradients and optimizer of real engines, against the estimate of `ttt_dist.training.memory_estimate`."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.cases import Layout, run_step
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT, SEQ_LEN
from ttt_dist.config.run import Config
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.stages import layer_sizes, stage_bounds
from ttt_dist.training.memory_estimate import Setup, states_of

WIDE = replace(LAYOUT, padded_vocab_size=4096)
BUCKET = 300_000
LIMITS = {"stage3_max_live_parameters": 2_000_000, "stage3_max_reuse_distance": 6_000_000}
PARTS = ("weights", "gradients", "optimizer")
BF16: dict[str, Any] = {"precision": "bf16"}

ALONE = [Layout(zero=zero, micro=4, **more) for zero, more in ((0, BF16), (1, {}), (2, BF16), (3, {}), (3, BF16))]
PAIRS = [
    *(Layout(zero=zero, micro=2, dp=2, **more) for zero, more in ((0, {}), (1, BF16), (2, {}), (2, BF16), (3, BF16))),
    Layout(zero=0, micro=4, tensor=2),
    Layout(zero=1, micro=4, tensor=2, **BF16),
    Layout(zero=3, micro=4, tensor=2, **BF16),
    Layout(zero=3, micro=4, ulysses=2),
    Layout(zero=1, micro=2, pipeline=2),
    Layout(zero=0, micro=2, pipeline=2, **BF16),
    Layout(zero=1, micro=2, pipeline=2, tied=True, **BF16),
    *(Layout(zero=zero, micro=2, dp=2, adapted=True) for zero in (0, 3)),
]


def memory_config(layout: Layout, folder: Path, **zero: int) -> Config:
    """6 million parameters, of which ZeRO-3 keeps the smaller matrices whole."""
    settings = {
        "stage": layout.zero,
        "overlap_comm": layout.zero == 3,  # as in ds_configs
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 100_000,
        **zero,
    }
    path = folder / f"zero{layout.zero}-{len(zero)}.json"
    path.write_text(json.dumps({"zero_optimization": settings}))
    config = layout.config()
    model = replace(config.model, hidden_size=256, num_layers=6, num_heads=8, ffn_hidden_size=768)
    return replace(config, deepspeed=str(path), model=model)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each piece of memory behind `tensors`, by its address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """What DeepSpeed's optimizer holds, in containers and objects of its own."""
    if isinstance(value, torch.Tensor):
        yield from (value, *(value.grad,) * (value.is_leaf and value.grad is not None))
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in tensors_in(item, depth + 1))
    elif isinstance(value, list | tuple | set):
        yield from (tensor for item in value for tensor in tensors_in(item, depth + 1))
    elif depth < 5 and type(value).__name__.startswith(("IPGBucket", "GradPartitionBuffer")):
        yield from tensors_in(vars(value), depth + 1)


def held(engine: Any) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer; whatever is neither weights nor optimizer is taken for gradients."""
    parameters, outer = list(engine.module.parameters()), engine.optimizer
    inner = getattr(outer, "optimizer", outer)
    shards = [parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor")]
    weights = storages([parameter.data for parameter in parameters] + shards)
    masters = [parameter.data for group in inner.param_groups for parameter in group["params"]]
    masters += getattr(outer, "fp32_partitioned_groups_flat", [])
    states = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t)]
    optimizer = {key: size for key, size in storages(masters + states).items() if key not in weights}
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    inside = list(tensors_in(vars(outer))) if outer is not inner else []
    gradients = {k: size for k, size in storages(grads + inside).items() if k not in weights and k not in optimizer}
    return sum(weights.values()), sum(gradients.values()), sum(optimizer.values())


def measure(layout: Layout, config: Config) -> dict[str, int]:
    """Most bytes of each part in two steps: as the backward pass begins, before gradients are reduced, and at the update."""
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.parallelize import parallelize

    mesh = layout.mesh()
    engine = parallelize(config, WIDE, mesh, RandomWeights())
    most = dict.fromkeys(PARTS, 0)

    def watch(owner: Any, name: str) -> None:
        inner = getattr(owner, name, None)

        def watched(*arguments: Any, **options: Any) -> Any:
            for part, size in zip(PARTS, held(engine), strict=True):
                most[part] = max(most[part], size)
            assert inner is not None
            return inner(*arguments, **options)

        if inner is not None:
            setattr(owner, name, watched)

    watch(engine, "backward")
    watch(engine.optimizer, "independent_gradient_partition_epilogue")
    watch(engine.optimizer, "step")
    for step in range(2):
        run_step(engine, layout, step)
    groups.leave()
    return most


def expected(layout: Layout, config: Config, rank: int) -> dict[str, int]:
    """The estimate for this rank, less the copies that are sent, which no object holds."""
    mesh = Mesh.of(config.parallel, layout.world_size, rank)
    setup = Setup(config=config, layout=WIDE, mesh=mesh, zero_stage=layout.zero, seq_len=SEQ_LEN, on_cuda=True)
    kinds = [layer_sizes(config.model, WIDE, mesh.tensor, of) for of in (None, setup.learns)]
    bounds = stage_bounds([sum(layer) for layer in kinds[0]], mesh.pipeline)
    own = slice(bounds[mesh.stage], bounds[mesh.stage + 1])
    states = states_of(setup, *([size for layer in sizes[own] for size in layer] for sizes in kinds))
    sent = 4 * BUCKET if layout.zero == 3 or (layout.zero == 2 and layout.precision == "bf16") else 0
    return dict(zip(PARTS, (states.weights, states.gradients - sent, states.optimizer), strict=True))


@pytest.mark.parametrize("layouts", [ALONE, PAIRS], ids=["1-process", "2-processes"])
def test_states_are_what_deepspeed_holds(layouts: list[Layout], tmp_path: Path) -> None:
    jobs = [(layout, memory_config(layout, tmp_path)) for layout in layouts]
    if layouts is PAIRS:  # ZeRO-3 lets go of weights, where it may not keep all
        limited = Layout(zero=3, micro=2, dp=2)
        jobs.append((limited, memory_config(limited, tmp_path, **LIMITS)))
    found = run_distributed([(measure, job) for job in jobs], layouts[0].world_size)
    for (layout, config), ranks in zip(jobs, found, strict=True):
        stages = [
            ranks[len(ranks) // layout.pipeline * stage :][: len(ranks) // layout.pipeline]
            for stage in range(layout.pipeline)
        ]
        for number, stage in enumerate(stages):
            most = {part: max(rank[part] for rank in stage) for part in PARTS}  # of the fullest process
            rank = number * len(stage)
            assert expected(layout, config, rank) == pytest.approx(most, rel=0.03), f"{layout}, stage {number}"
