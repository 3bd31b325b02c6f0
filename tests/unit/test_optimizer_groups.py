"""Which weights are updated alike."""

from typing import Any

import pytest

from ttt_dist.config.model import LoraConfig, ModelConfig
from ttt_dist.config.run import ParamGroup, TrainConfig
from ttt_dist.model.optimizer_groups import OptimizerGroup, learnt_names, num_trained, optimizer_groups
from ttt_dist.model.structure import is_adapter, parameter_shapes
from ttt_dist.util.errors import UserError

SHAPES = parameter_shapes(
    ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=64), 128
)


def groups(*chosen: dict[str, Any]) -> list[OptimizerGroup]:
    return optimizer_groups(
        SHAPES, TrainConfig(weight_decay=0.1, param_groups=[ParamGroup(**group) for group in chosen])
    )


def test_without_settings_matrices_decay_and_vectors_do_not() -> None:
    matrices, vectors = groups()
    assert (matrices.lr_scale, matrices.weight_decay, vectors.weight_decay) == (1.0, 0.1, 0.0)
    assert sorted(matrices.names + vectors.names) == sorted(SHAPES)
    assert {len(SHAPES[name]) for name in matrices.names} == {2}
    assert {len(SHAPES[name]) for name in vectors.names} == {1}


def test_a_weight_is_of_the_first_group_that_names_it() -> None:
    found = groups(
        {"params": "blocks.0.*", "lr_scale": 0.5},
        {"params": "*norm.weight", "weight_decay": 0.2},
        {"params": "embed.*"},
    )
    assert sorted(name for group in found for name in group.names) == sorted(SHAPES)  # each in one
    by_name = {name: group for group in found for name in group.names}
    assert (by_name["blocks.0.mlp.down.weight"].lr_scale, by_name["blocks.0.mlp.down.weight"].weight_decay) == (
        0.5,
        0.1,
    )
    assert (by_name["blocks.0.mlp_norm.weight"].lr_scale, by_name["blocks.0.mlp_norm.weight"].weight_decay) == (
        0.5,
        0.0,
    )
    assert (by_name["blocks.1.mlp_norm.weight"].lr_scale, by_name["blocks.1.mlp_norm.weight"].weight_decay) == (
        1.0,
        0.2,
    )
    assert by_name["embed.weight"] == OptimizerGroup(("embed.weight",), 1.0, 0.1)


def test_what_stays_as_it_is_does_not_decay() -> None:
    found = groups({"params": "head.weight", "lr_scale": 0, "weight_decay": 0.3}, {"params": "embed.*", "rows": "new"})
    by_name = {name: group for group in found for name in group.names}
    assert by_name["head.weight"].weight_decay == by_name["embed.weight"].weight_decay == 0.0
    assert by_name["head.weight"].is_masked
    assert by_name["embed.weight"].is_masked
    assert not by_name["norm.weight"].is_masked


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            [{"params": "lm_head.*"}],
            r"train\.param_groups\.0\.params=lm_head\.\* names no weight.*there are embed\.weight",
        ),
        (
            [{"params": "*"}, {"params": "embed.weight"}],
            r"train\.param_groups\.1\.params=embed\.weight names no weight",
        ),
        (
            [{"params": "norm.*", "rows": "new"}],
            r"rows=new is for embed\.weight and head\.weight, not for norm\.weight",
        ),
    ],
)
def test_a_group_that_says_nothing_is_refused(chosen: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        groups(*chosen)


def test_beside_adapters_only_they_and_named_rows_of_the_vocabulary_learn() -> None:
    model = ModelConfig(num_layers=2, lora=LoraConfig(r=4, target_modules=["v_proj"]))
    shapes = parameter_shapes(model, 128)
    adapters = {name for name in shapes if is_adapter(name)}
    assert len(adapters) == 2 * 2
    assert [set(group.names) for group in optimizer_groups(shapes, TrainConfig())] == [adapters]
    train = TrainConfig(
        param_groups=[ParamGroup(params="embed.*", rows="new"), ParamGroup(params="*lora_B", lr_scale=4)]
    )
    assert learnt_names(shapes, train) == {*adapters, "embed.weight"}
    assert num_trained(shapes, train, 100) == 28 * 256 + 2 * 4 * (256 + 128)
    with pytest.raises(
        UserError, match=r"param_groups\.0\.params names blocks\.0\.mlp\.down\.weight: with model\.lora only"
    ):
        optimizer_groups(shapes, TrainConfig(param_groups=[ParamGroup(params="*.down.*")]))
