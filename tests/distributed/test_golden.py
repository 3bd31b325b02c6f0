"""A run of build f7f6f4f (tests/golden) goes on here as it would have there: its recipe, its shards, its checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.small_run import ROOT
from tests.golden import commands
from tests.unit.test_golden import EXPECTED, FILES

FIRST, LAST = EXPECTED["first"], EXPECTED["last"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A copy of the golden files, which a run may write into."""
    return shutil.copytree(FILES, tmp_path / "files")


def same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for here, there in zip(found, expected, strict=True):
        assert here == pytest.approx(there, rel=1e-6)


def test_a_run_goes_on_from_its_checkpoint(work: Path) -> None:
    """By the recipe, which names no objective, on the processes that it was saved by."""
    told = commands.train(ROOT, work, 2, "--config", "recipe.yaml")
    same(commands.figures(work / "run", commands.SAVED + 1, commands.STEPS), LAST)
    assert "not as it would have" not in told


def test_a_run_goes_on_in_another_layout(work: Path) -> None:
    """By the settings that were kept in the run folder, as one process."""
    shutil.copy(work / "run" / "config.yaml", work / "kept.yaml")
    told = commands.train(ROOT, work, 1, "--config", "kept.yaml")
    same(commands.figures(work / "run", commands.SAVED + 1, commands.STEPS), LAST)
    assert "not as it would have" not in told
    here, there = (load_file(folder / "export" / "model.safetensors") for folder in (work / "run", work))
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    decoding = json.loads((work / "run" / "export" / "generation_config.json").read_text())["ttt_decoding"]
    assert decoding["ends"] == "any"


def test_a_run_starts_as_it_did(work: Path) -> None:
    """By the settings that were kept; within the warm-up the learning rate knows nothing of the run's length."""
    words = ["--config", "run/config.yaml", "run_dir=again", "train.steps=4", "train.eval_every=0"]
    commands.train(ROOT, work, 1, *words)
    same(commands.figures(work / "again", 1, 4), FIRST)
