"""The gradient noise scale: unbiased estimates, their moving averages, what a record says, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.unit.test_records import NOTHING, step
from ttt_dist.config.checks import check_run
from ttt_dist.config.loader import load_config
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.micro_batch_norms import MicroBatchNorms
from ttt_dist.training.noise_scale import NoiseScale, estimates
from ttt_dist.training.step import StepResult
from ttt_dist.util.errors import UserError

ALONE = Mesh(tensor=1, ulysses=1, data=1, pipeline=1, rank=0)


def measured(square: float | None, norm: float, num_micro_batches: int = 4) -> StepResult:
    """Of 8 loss units and 100 tokens."""
    result = step(1.0, NOTHING, square=square)
    return replace(result, grad_norm=norm, counts=replace(result.counts, micro_batches=num_micro_batches))


def new(state: dict | None = None) -> NoiseScale:
    return NoiseScale(MicroBatchNorms(nn.Linear(2, 2), ALONE), 10, state)


def test_estimates_are_those_of_the_paper_for_equal_micro_batches() -> None:
    found = estimates(measured(square=5.0, norm=2.0))
    small, big = 2.0, 8.0  # units of both batches
    signal = (big * 4.0 - small * 5.0) / (big - small)
    noise = (5.0 - 4.0) / (1.0 / small - 1.0 / big)
    assert found == pytest.approx((noise, signal))


def test_estimates_of_uneven_micro_batches_are_right_on_average() -> None:
    """Gradients of single units with a known mean and variance, many times over."""
    random, truth, spread = np.random.default_rng(0), np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0, 2.0])
    units, found = [1, 5, 2], []
    for _ in range(20_000):
        gradients = [truth + spread * random.standard_normal((number, 3)) for number in units]
        square = sum(len(part) * (part.mean(axis=0) ** 2).sum() for part in gradients) / sum(units)
        norm = float(np.linalg.norm(np.concatenate(gradients).mean(axis=0)))
        found.append(estimates(measured(square, norm, len(units))))
    noise, signal = np.mean(found, axis=0)
    assert noise == pytest.approx((spread**2).sum(), rel=0.02)
    assert signal == pytest.approx((truth**2).sum(), rel=0.03)


def test_both_parts_are_averaged_before_they_are_divided() -> None:
    watch = new()
    watch.add(measured(5.0, 2.0))
    noise, signal = estimates(measured(5.0, 2.0)) or (0.0, 0.0)
    packs = noise / signal / 8 * 16
    assert watch.record(num_packs=16) == pytest.approx({"noise_scale": packs / 16 * 100, "noise_scale_packs": packs})
    assert watch.record(num_packs=16) == {}  # nothing measured since
    resumed = new(watch.state)
    later = estimates(measured(9.0, 1.5)) or (0.0, 0.0)
    for one in (watch, resumed):
        one.add(measured(9.0, 1.5))
        averages = 0.95 * noise + later[0], 0.95 * signal + later[1]
        assert one.record(num_packs=8)["noise_scale_packs"] == pytest.approx(averages[0] / averages[1])


@pytest.mark.parametrize(
    "result", [measured(None, 1.0), measured(float("nan"), 1.0), measured(2.0, float("inf")), measured(2.0, 1.0, 1)]
)
def test_steps_that_say_nothing_leave_the_averages(result: StepResult) -> None:
    watch = new({"noise": 3.0, "signal": 2.0})
    watch.add(result)
    assert watch.state == {"noise": 3.0, "signal": 2.0} and watch.record(8) == {}


def test_a_gradient_that_noise_hides_has_no_scale() -> None:
    watch = new()
    watch.add(measured(square=5.0, norm=1.0))  # 4 x 1 < 5
    assert watch.state["signal"] < 0 and watch.record(8) == {}


def test_hooks_take_the_micro_batches_of_the_steps_that_ask() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(3, 1), torch.randn(2, 3)
    norms = MicroBatchNorms(layer, ALONE)

    def passes() -> None:
        layer.zero_grad()
        for row in inputs:
            layer(row).sum().backward()  # weight's gradient: the row; bias's: 1

    passes()
    assert norms.end(torch.device("cpu")) == 0
    norms.begin([2.0, 0.5])
    passes()
    squares = (inputs.double() ** 2).sum(dim=1) + 1
    assert float(norms.end(torch.device("cpu"))) == pytest.approx(float(2.0 * squares[0] + 0.5 * squares[1]))
    passes()
    assert norms.end(torch.device("cpu")) == 0


def test_it_is_measured_every_so_many_steps() -> None:
    watch = new()
    assert [number for number in range(1, 31) if watch.norms_at(number) is watch.norms] == [10, 20, 30]


@pytest.mark.parametrize(
    ("settings", "world_size", "told"),
    [
        (["parallel.ulysses=2"], 2, "parallel.ulysses=2 adds up"),
        (["parallel.pipeline=2", "model.tie_embeddings=true"], 2, "model.tie_embeddings=true shares"),
        (["train.micro_batch=4"], 1, "train.micro_batch=4 is the whole global batch"),
    ],
)
def test_where_no_micro_batch_has_a_gradient_of_its_own_it_is_refused(
    settings: list[str], world_size: int, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    model = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_size": 32, "tie_embeddings": False}
    path.write_text(yaml.safe_dump({"data": {"train": "x"}, "model": model, "train": {"global_batch": 4}}))
    with pytest.raises(UserError, match=rf"telemetry\.noise_scale_every=10 .*{told}"):
        check_run(load_config(path, [*settings, "telemetry.noise_scale_every=10"]), world_size)
    check_run(load_config(path, settings), world_size)
