"""Processes that trust what JSONs say, but for one that looks, start from the same checkpoint on the same shards, or all stop."""

from typing import Any

import pytest

from tests.distributed.agree_cases import due_saves, lost_shard, other_shards, plans
from tests.distributed.launch import run_distributed
from tests.distributed.small_run import make_run
from tools.simulate.synthetic import write_checkpoint
from ttt_dist.config.loader import read_config
from ttt_dist.data.shards import ShardReader


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    folder = tmp_path_factory.mktemp("agree")
    config = make_run(folder)
    whole, damaged = folder / "whole", folder / "damaged"
    for run_dir in (whole, damaged):
        settings = read_config(config, [f"run_dir={run_dir}", "deepspeed=ds_configs/zero3.json"])
        layout = ShardReader(settings.data.train).layout
        for step, masking in ((3, "bernoulli"), (6, "exact_count")):
            settings.objective = settings.objective.resolved()
            settings.objective.masking = masking
            write_checkpoint(settings, layout, 2, step)
    newest = damaged / "checkpoints" / "step-00000006"
    next(newest.glob("*optim*")).unlink()
    cases = [(whole, None), (damaged, None), (folder / "new", other_shards), (folder / "new", lost_shard)]
    return run_distributed([(due_saves, ()), *((plans, (config, *case)) for case in cases)], 2)


def test_a_save_is_due_for_all_by_the_clock_of_rank_0(told: list[list[Any]]) -> None:
    assert told[0] == [[True, True, False]] * 2


def test_all_go_on_from_the_newest(told: list[list[Any]]) -> None:
    expected = "step-00000006, masks exact_count"
    assert told[1] == [{"own": expected, "common": expected}] * 2


def test_all_go_on_from_what_the_one_that_looks_has_found_whole(told: list[list[Any]]) -> None:
    """... by the settings that its run.json has."""
    plan = {"own": "step-00000006, masks exact_count", "common": "step-00000003, masks bernoulli"}
    assert told[2] == [plan] * 2


def test_other_shards_stop_all(told: list[list[Any]]) -> None:
    assert told[3][0] == told[3][1]
    assert "train: has checksum 111111111111 on " in told[3][0]["error"]
    assert "give all machines the same shards" in told[3][0]["error"]


def test_a_lost_file_stops_all(told: list[list[Any]]) -> None:
    assert told[4][0] == told[4][1]
    assert told[4][0]["error"].endswith("train.bin: missing; write the shard again")
