"""The space that a run asks for before it starts is what DeepSpeed then writes, in every layout."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from ttt_dist.checkpoint.restore import checkpoint_bytes
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config

MODEL = ModelConfig(hidden_size=256, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=1024)
TOKENS = replace(LAYOUT, padded_vocab_size=4096)
SPLITS = [
    *(Layout(zero, 2, dp=2, precision="fp32") for zero in range(4)),
    *(Layout(zero, 2, dp=2, precision="bf16") for zero in range(4)),
    *(Layout(zero, 2, pipeline=2, precision="fp32") for zero in (0, 1)),
    *(Layout(zero, 2, pipeline=2, precision="bf16", tied=True) for zero in (0, 1)),
    Layout(1, 2, tensor=2, precision="bf16"),
    Layout(3, 2, tensor=2, precision="bf16"),
    *(Layout(zero, 2, dp=2, precision="bf16", tuned=True) for zero in (1, 3)),  # with a moving average
    *(Layout(zero, 2, dp=2, precision="bf16", adapted=True) for zero in (0, 1, 3)),
    Layout(1, 2, pipeline=2, adapted=True),
]


def config_of(split: Layout) -> Config:
    return replace(split.config(), model=replace(MODEL, tie_embeddings=split.tied, lora=split.config().model.lora))


def save(split: Layout, folder: Path) -> None:
    """A checkpoint of random weights and moments."""
    import torch
    import torch.distributed as dist

    from ttt_dist.checkpoint import manager
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.deepspeed_adapter import inner_adam, masters
    from ttt_dist.parallel.parallelize import parallelize

    config = config_of(split)
    engine = parallelize(config, TOKENS, split.mesh(), RandomWeights())
    for master in masters(engine):
        kinds = ("exp_avg", "exp_avg_sq", "ema") if config.train.ema else ("exp_avg", "exp_avg_sq")
        moments = {key: torch.rand_like(master) for key in kinds}
        inner_adam(engine).state[master] = {"step": torch.tensor(1.0), **moments}
    metadata = manager.CheckpointMetadata.of_run(config, TOKENS, dist.get_world_size())
    manager.save(engine, folder, 1, metadata, {}, CheckpointConfig())
    groups.leave()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    run_distributed([(save, (split, folder / str(split))) for split in SPLITS], 2)
    return folder


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_the_space_asked_for_is_what_is_written(split: Layout, saved: Path) -> None:
    written = sum(path.stat().st_size for path in (saved / str(split)).rglob("*") if path.is_file())
    assert written == pytest.approx(checkpoint_bytes(config_of(split), TOKENS), rel=0.02)
