"""DeepSpeed's JSON is known key by key, and what is taken of it DeepSpeed takes too."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

from tests.distributed.cases import ROOT
from ttt_dist.config import deepspeed
from ttt_dist.config.deepspeed import read_deepspeed, require_accepted, zero_stage
from ttt_dist.config.loader import load_config
from ttt_dist.config.reading import hints_of, known_keys
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.zero import deepspeed_config
from ttt_dist.util.errors import UserError

SHIPPED = pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
AUTO_ZERO = {
    "stage": 3, "overlap_comm": True, "sub_group_size": 1e9, "stage3_max_live_parameters": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}  # fmt: skip


def read(tmp_path: Path, content: object) -> dict[str, Any]:
    (tmp_path / "ds.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_deepspeed(tmp_path / "ds.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 8}, "remove `train_batch_size`.*train.global_batch"),
        ({"bf16": {"enabled": True}}, "remove `bf16`.*train.precision"),
        ({"fp16": {"enabled": True}}, "remove `fp16`.*train.precision"),
        ({"optimizer": {"type": "Adam", "params": {"lr": "auto"}}}, "remove `optimizer`.*train.lr"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "remove `optimizer`.*train.lr"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto"}}}, "remove `scheduler`.*train.warmup"),
        ({"activation_checkpointing": {}}, "remove `activation_checkpointing`.*train.activation_checkpointing"),
        ({"zero_optimisation": {"stage": 1}}, "unknown key `zero_optimisation`; did you mean `zero_optimization`"),
        ({"zero_optimization": {"stge": 1}}, "`zero_optimization.stge`; did you mean `zero_optimization.stage`"),
        (
            {"zero_optimization": {"reduce_buket_size": 1}},
            "did you mean `zero_optimization.reduce_bucket_size`",
        ),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization.stage must lie in \[0, 3\], not 4"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage must be a whole number, not true"),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "zero_optimization.reduce_bucket_size must be positive"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, 'reduce_bucket_size` is "auto".*write 50000000'),
        ({"steps_per_print": "auto"}, '`steps_per_print` is "auto".*take it away'),
        ({"zero_optimization": {"mics_shard_size": 2}}, "remove `zero_optimization.mics_shard_size`.*MiCS"),
        ({"zero_optimization": {"zero_hpz_partition_size": 2}}, "zero_hpz_partition_size`.*hpZ"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param.device=nvme: .*NVMe; write cpu"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "offload_optimizer.ratio`.*partial offload"),
        ({"zero_optimization": 3}, "zero_optimization is a section"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients: .*write false"),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True}},
            'cpu_offload`.*write offload_optimizer: {"device": "cpu"}',
        ),
        ({"bfloat16": {"enabled": True}}, "remove `bfloat16`.*train.precision"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param asks for what ZeRO 2 does not do; write stage 3, or",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "ZeRO 0 does not do; write stage 1 or more, or",
        ),
        ("{", "is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[" * 100000, "is not JSON"),
        ("[]", "must hold a JSON object"),
    ],
    ids=str,
)
def test_a_wrong_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"deepspeed={tmp_path}") and "\n" not in str(caught.value)


def test_what_the_config_decides_may_be_auto(tmp_path: Path) -> None:
    """As files made for transformers are."""
    params = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    values = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": AUTO_ZERO,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 2000,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    assert read(tmp_path, values) == {
        "zero_optimization": AUTO_ZERO,
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    }
    require_accepted(tmp_path / "ds.json")


def test_all_keys_are_deepspeeds_own() -> None:
    """A key that DeepSpeed drops or renames fails here."""
    models: dict[type, Any] = {
        deepspeed.ZeroConfig: DeepSpeedZeroConfig,
        deepspeed.OffloadConfig: DeepSpeedZeroOffloadOptimizerConfig,
        deepspeed.OffloadParamConfig: DeepSpeedZeroOffloadParamConfig,
    }
    for ours, theirs in models.items():
        known = {field.alias or name for name, field in theirs.model_fields.items()}
        assert set(hints_of(ours)) <= known
    of_zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert {name for name in of_zero if name.startswith(("zero_", "mics_"))} <= set(deepspeed._UNTESTED)
    assert not set(known_keys(deepspeed.DeepSpeedFile)) & (set(deepspeed._UNTESTED) | set(deepspeed._DECIDED_BY_CONFIG))


@SHIPPED
def test_shipped_files_are_accepted_and_have_the_stage_of_their_name(path: Path) -> None:
    assert path.stem.startswith(f"zero{zero_stage(path)}")
    require_accepted(path)
    assert DeepSpeedConfig(read_deepspeed(path) | {"train_batch_size": 1}).zero_config.stage == zero_stage(path)


def test_what_deepspeed_alone_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "read_deepspeed", lambda path: {"zero_optimization": {"stge": 1}})
    with pytest.raises(UserError, match=r"deepspeed=x.json: DeepSpeed refuses it .*stge") as caught:
        require_accepted("x.json")
    assert "\n" not in str(caught.value)


@SHIPPED
def test_deepspeed_waits_for_the_device_neither_to_time_it_nor_at_each_bucket(path: Path) -> None:
    config = load_config(ROOT / "recipes" / "demo.yaml", ["data.train=shards/train", f"deepspeed={path}"])
    settings = deepspeed_config(config, Mesh.of(config.parallel, 1, 0))
    assert settings["timers"]["throughput"]["enabled"] is False
    assert zero_stage(path) != 2 or settings["zero_optimization"]["overlap_comm"] is False
