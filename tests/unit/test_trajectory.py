"""A run that goes on with other settings says so in one line, for every setting that moves its weights, and for no other."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.structures import tiny_layout
from ttt_dist.checkpoint import manager, trajectory
from ttt_dist.config.loader import read_config, to_dict
from ttt_dist.config.objective import Objective
from ttt_dist.config.run import CheckpointConfig, Config, GuardConfig, ParamGroup, TrainConfig
from ttt_dist.data.loader import step_sizes

ROOT = Path(__file__).resolve().parents[2]


def resumed_with(saved: Config, here: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is told where a run with the settings `here` goes on from step 3 of one with `saved`."""
    layout, zero1 = tiny_layout(), str(ROOT / "ds_configs" / "zero1.json")
    run, before = (manager.CheckpointMetadata.of_run(replace(it, deepspeed=zero1), layout, 1) for it in (here, saved))
    metadata = {
        "layout": layout.to_dict(), "config": before.config, "step": 3, "world_size": 1, "zero_stage": 1,
    }  # fmt: skip
    (folder / manager.METADATA).write_text(json.dumps(metadata))
    manager.require_resumable(folder, run)
    return capsys.readouterr().err.splitlines()


PER_MICRO_BATCH = Objective(mix_unit="micro_batch")
CHANGED = {
    "seed": (Config(), Config(seed=7), "seed was 1234, now 7"),
    "weight decay": (Config(), Config(train=TrainConfig(weight_decay=0.1)), "train.weight_decay was 0.01, now 0.1"),
    "betas": (
        Config(),
        Config(train=TrainConfig(betas=(0.9, 0.98))),
        "train.betas was [0.9, 0.95], now [0.9, 0.98]",
    ),
    "eps": (Config(), Config(train=TrainConfig(eps=1e-6)), "train.eps was 1e-08, now 1e-06"),
    "clip": (Config(), Config(train=TrainConfig(clip=0)), "train.clip was 1.0, now 0.0"),
    "average": (Config(), Config(train=TrainConfig(ema=0.99)), "train.ema was 0.0, now 0.99"),
    "precision": (Config(), Config(train=TrainConfig(precision="bf16")), "train.precision was fp32, now bf16"),
    "fp8": (Config(), Config(train=TrainConfig(fp8=True)), "train.fp8 was False, now True"),
    "groups": (
        Config(),
        Config(train=TrainConfig(param_groups=[ParamGroup(params="*norm*", lr_scale=0)])),
        "train.param_groups was [], now [{'params': '*norm*', 'lr_scale': 0.0,",
    ),
    "spikes": (Config(), Config(guard=GuardConfig(spike_factor=4.0)), "guard.spike_factor was 0.0, now 4.0"),
    "objective": (Config(), Config(objective=Objective(z_loss=1e-4)), "objective was ttt, "),
    "draws of a micro-batch": (
        Config(objective=PER_MICRO_BATCH),
        Config(objective=PER_MICRO_BATCH, train=TrainConfig(micro_batch=2)),
        "train.micro_batch was 1, now 2",
    ),
}


@pytest.mark.parametrize(("saved", "here", "told"), CHANGED.values(), ids=CHANGED)
def test_a_setting_that_moves_the_weights_is_told_in_one_line(
    saved: Config, here: Config, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [line] = resumed_with(saved, here, tmp_path, capsys)
    assert f"{tmp_path}: {told}" in line and ": the run goes on, but not as it would have" in line


def test_every_setting_is_compared_or_named_as_one_that_changes_nothing() -> None:
    """A key that is taken away goes from the list too, and what is new is compared."""
    values = to_dict(Config())
    keys = {f"{name}.{inner}" for name, items in values.items() if isinstance(items, dict) for inner in items}
    compared = trajectory.compared_settings(values)
    assert keys | set(values) | {"corpora", "prep", "evaluation"} >= trajectory.NOT_COMPARED
    assert set(compared) == {
        "seed", "train.global_batch", "train.betas", "train.eps", "train.weight_decay", "train.ema", "train.param_groups",
        "train.clip", "train.precision", "train.fp8", "guard.spike_factor",
    }  # fmt: skip


def test_what_changes_no_weight_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Config(
        run_dir="elsewhere",
        train=TrainConfig(micro_batch=2, steps=9, eval_every=3, compile=True, init_from="models/x"),
        checkpoint=CheckpointConfig(save_every=1),
        guard=GuardConfig(max_skipped=3),
    )
    assert resumed_with(Config(), here, tmp_path, capsys) == []


def test_another_batch_size_comes_with_the_setting_that_keeps_order_and_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps done count by the sizes that the settings give them: with a stage that begins here, by those they had."""
    saved, here = (Config(train=TrainConfig(global_batch=size, tokens=640)) for size in (8, 16))
    [line] = resumed_with(saved, here, tmp_path, capsys)
    assert "the order of packs and train.tokens count the 3 steps done with 16 packs each" in line
    told = re.search(r"keep train.global_batch=(\d+), and from here on '(train.batch_stages=.*)'", line)
    assert told is not None
    (tmp_path / "run.yaml").write_text("train: {tokens: 640}")
    followed = read_config(tmp_path / "run.yaml", [f"train.global_batch={told[1]}", told[2]])
    assert resumed_with(saved, followed, tmp_path, capsys) == []
    sizes = step_sizes(followed)
    assert (sizes.trained(3), sizes.global_batch(3), sizes.steps_of(64)) == (24, 16, 6)  # 24 + 3 x 16 >= 64
