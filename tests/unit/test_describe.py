"""What a dry run and a result file say."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import result_file
from benchmarks.gpu.report import rounded
from tests.structures import tiny_layout
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective, ObjectiveStage
from ttt_dist.model.layers import LocalLayerFactory
from ttt_dist.model.transformer import Transformer
from ttt_dist.telemetry.run_folder import environment, write_environment
from ttt_dist.training.dry_run import count_parameters, describe_objective

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_hidden_size": 24}


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied: bool) -> None:
    config, layout = ModelConfig(**SIZES, tie_embeddings=tied), tiny_layout()
    counted = count_parameters(config, layout.padded_vocab_size)
    model = Transformer.for_layout(config, layout, LocalLayerFactory())
    assert sum(counted.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counted["embed"] == 64 * 16 and counted["norm"] == 16
    assert counted.get("head", 0) == (0 if tied else 64 * 16)


def test_stages_of_the_objective_are_told_up_to_the_last_step() -> None:
    plain = Objective()
    assert describe_objective(plain, 100) == [str(plain)]
    stages = [
        ObjectiveStage(from_step=0, kind="ar"),
        ObjectiveStage(from_step=40),
        ObjectiveStage(from_step=200, p_mix=0.9),
    ]
    staged = Objective(stages=stages)
    assert describe_objective(staged, 100) == [
        f"steps 0 to 40: {staged.at(0)}",
        f"steps 40 to 100: {staged.at(99)}",
        f"held-out loss: {staged}",
    ]
    assert str(staged.at(0)).startswith("ar") and str(staged.at(99)).startswith("ttt")


def test_a_run_folder_says_on_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "a.yaml"])
    values = environment(world_size=4, start_step=7)
    write_environment(tmp_path, values)
    assert json.loads((tmp_path / "environment.json").read_text()) == values
    assert (values["world_size"], values["start_step"]) == (4, 7)
    assert values["command"] == ["train.py", "--config", "a.yaml"]
    assert values["packages"]["torch"].startswith("2.")
    assert values["hardware"]["memory_bytes"] > 2**28 and values["hardware"]["gpus"] == []


def test_a_result_file_begins_with_what_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--steps", "3"])
    lines = result_file.head("Speed", "benchmarks.train_step")
    assert lines[0] == "# Speed" and lines[-1] == "- Command: `python -m benchmarks.train_step --steps 3`"
    assert any("no GPU" in line and "threads" in line for line in lines)


def test_figures_are_told_to_four_digits_wherever_they_stand() -> None:
    assert rounded({"a": [1.23456, {"b": 123456.0}], "n": 123456, "s": "1.23456", "none": None}) == {
        "a": [1.235, {"b": 123500.0}], "n": 123456, "s": "1.23456", "none": None,
    }  # fmt: skip
