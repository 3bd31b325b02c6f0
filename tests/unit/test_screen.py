"""Greedy text without logits: the int8 copy loses no row that is the likeliest, whatever the numbers are."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plain_decoding import differing, draw_settings
from tests.unit.test_decode import drawn_prompts, folder
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference import model_runner
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Finished
from ttt_dist.model import screen as module
from ttt_dist.model import tiles
from ttt_dist.model.hf.folder import ModelFolder
from ttt_dist.model.screen import FEW_ROWS, Screen
from ttt_dist.model.tiles import Tiles

NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(params=[127, 63], ids=["VNNI", "without"], autouse=True)
def levels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as processors with and without VNNI need them; what one can do with the first, it says itself."""
    if request.param > module.num_levels():
        pytest.skip("this processor overflows on int8 products of 127 levels")
    monkeypatch.setattr(module, "num_levels", lambda: request.param)
    monkeypatch.setattr(tiles, "TILE_ROWS", 256)


def heads(generator: torch.Generator) -> dict[str, Tensor]:
    """Weights [1000, 64] of many kinds."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    plain = normal(1000, 64)
    return {
        "normal": plain,
        "rows of many lengths": plain * torch.exp(2 * normal(1000, 1)),
        "heavy tails": plain / normal(1000, 64).abs().clamp_(min=1e-3),
        "a large column": plain * torch.where(torch.arange(64) == 7, 100.0, 1.0),
        "whole numbers": (3 * plain).round(),
        "alike": plain[:1] + 1e-4 * plain,
        "alike but for the last bits": plain[:1] * (1 + 2**-22 * torch.arange(1000).unsqueeze(1)),
        "twins": plain[:10].repeat(100, 1),
        "tiny": 1e-12 * plain,
        "huge": 1e15 * plain,
        "zeros": torch.where(torch.arange(1000).unsqueeze(1) % 2 == 0, plain, 0.0),
    }


def states(generator: torch.Generator) -> Tensor:
    """Hidden states [7, 64] of many kinds."""
    x = torch.randn(7, 64, generator=generator)
    x[1, 5] = 50
    x[2] /= x[3].abs()
    x[4] = x[4].round()
    x[5] *= 1e-6
    x[6, :4] = torch.tensor([3000.0, -2000.0, 500.0, 40.0])
    return x


def exact(weight: Tensor, hidden: Tensor, rows: slice, others: Tensor) -> Tensor:
    """The first of the likeliest rows."""
    logits = (hidden.double().unsqueeze(1) * weight[rows].double()).sum(2)  # of twins alike, as no product's are
    logits[:, others] = float("-inf")
    return logits.argmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_row_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SHARE", 100)  # none is left to the logits
    generator = torch.Generator().manual_seed(seed)
    hidden = states(generator)
    for name, weight in heads(generator).items():
        screen = Screen(Tiles(weight.clone()))
        for rows, others in ((slice(0, 1000), NONE), (slice(130, 870), torch.tensor([0, 3, 500, 739]))):
            found = screen.likeliest(hidden, rows, others)
            assert found.tolist() == exact(weight, hidden, rows, others).tolist(), name
            others = torch.cat([others, found.unique()])
            assert screen.likeliest(hidden, rows, others).tolist() == exact(weight, hidden, rows, others).tolist(), name


def test_a_choice_is_its_own_state_s_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(1000, 64, generator=generator), states(generator)
    hidden[3] = float("nan")
    screen = Screen(Tiles(weight.clone()))
    together = screen.likeliest(hidden, slice(0, 1000), NONE)
    assert together.tolist() == [int(screen.likeliest(x, slice(0, 1000), NONE)) for x in hidden.split(1)]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_left_to_the_logits(wrong: float) -> None:
    weight, hidden = torch.randn(300, 64), torch.randn(3, 64)
    hidden[1, 2] = wrong
    assert (Screen(Tiles(weight.clone())).likeliest(hidden, slice(0, 300), NONE) < 0).tolist() == [False, True, False]
    weight[5, 3] = wrong
    assert (Screen(Tiles(weight.clone())).likeliest(hidden, slice(0, 300), NONE) < 0).all()


def test_too_many_likely_rows_are_left_to_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hidden = torch.randn(1, 64).repeat(FEW_ROWS + 1, 1), torch.randn(2, 64)
    hidden[1] = 0
    screen = Screen(Tiles(weight.clone()))
    assert screen.likeliest(hidden, slice(0, FEW_ROWS + 1), NONE).tolist() == [-1, -1]
    assert screen.likeliest(hidden, slice(1, FEW_ROWS + 1), NONE).tolist() == [0, -1]
    monkeypatch.setattr(module, "MOST_SHARE", 1)
    assert screen.likeliest(hidden, slice(0, FEW_ROWS + 1), NONE).tolist() == [0, -1]
    none_left = torch.arange(FEW_ROWS + 1)
    assert screen.likeliest(hidden, slice(0, FEW_ROWS + 1), none_left).tolist() == [-1, -1]


def test_a_head_that_leaves_most_is_not_screened_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 4)
    weight, hidden = torch.randn(300, 64), torch.randn(4, 64)
    screen = Screen(Tiles(weight.clone()))
    for _ in range(2):
        assert (screen.likeliest(0 * hidden, slice(0, 300), NONE) < 0).all()
        assert (screen.likeliest(hidden, slice(0, 300), NONE) >= 0).all()
    for _ in range(3):
        screen.likeliest(0 * hidden, slice(0, 300), NONE)
    assert (screen.likeliest(hidden, slice(0, 300), NONE) < 0).all()


@pytest.mark.parametrize("size", [1e36, 1e25, 1e-25, 1e-36])
def test_numbers_at_the_ends_of_fp32_are_right_or_left_to_the_logits(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, hidden, others = torch.randn(1000, 64, generator=generator), states(generator), torch.arange(9)
    for rows in (slice(0, 1000), slice(0, 10)):
        wanted = exact(weight, hidden, rows, others)
        for head, state in ((weight, size * hidden), (size * weight, hidden)):
            found = Screen(Tiles(head.clone())).likeliest(state, rows, others)
            assert ((found == wanted) | (found < 0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", range(6))
def test_decoding_gives_the_tokens_of_the_plain_loop(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy requests beside such that sample; some of whose choices are left to the logits."""
    screened = []

    def likeliest(screen: Screen, hidden: Tensor, *others: object) -> Tensor:
        ids = real(screen, hidden, *others)
        ids[:: 3 + case] = -1
        screened.append(len(ids))
        return ids

    real = model_runner.likeliest
    monkeypatch.setattr(model_runner, "likeliest", likeliest)
    monkeypatch.setattr(tiles, "LARGE", 0)
    rng = np.random.default_rng(case)
    kind = ("ttt", "ar", "ttt")[case % 3]
    prompts = drawn_prompts(rng, 8)
    chosen = [
        draw_settings(rng, kind, temperature=temperature, span_limit=40, max_text=8, max_codes=60)
        for temperature in (0, 0, 0.7, 0, 1e-6, 0, 0, 0)
    ]
    assert set(differing(folder(case % 5, kind), prompts, chosen, 1 + case)) <= {2}  # the plain loop is greedy
    assert sum(screened) > 30
    # The one that samples, too, is what it is without a screen.
    by_screen = decoded(folder(case % 5, kind), prompts, chosen)
    monkeypatch.setattr(tiles, "LARGE", math.inf)
    assert by_screen == decoded(folder(case % 5, kind), prompts, chosen)


def decoded(model: ModelFolder, prompts: list[np.ndarray], chosen: list[DecodeSettings]) -> dict[int, list[int]]:
    """The response to each prompt by settings of its own."""
    session = Decoder(model).session()
    for prompt, settings in zip(prompts, chosen, strict=True):
        session.add(Request(prompt), settings)
    found = {}
    while not session.is_idle:
        found.update({key: event.result.ids.tolist() for key, event in session.step() if isinstance(event, Finished)})
    return found


def test_a_screen_is_made_for_greedy_text_of_a_large_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(tiles, "Screen", lambda given: made.append(given) or Screen(given))
    requests = [Request(prompt) for prompt in drawn_prompts(np.random.default_rng(0), 2)]
    sampled = DecodeSettings(temperature=1.0, span_limit=20, max_text=6, max_codes=30)
    greedy, model = replace(sampled, temperature=0.0), folder()
    Decoder(folder()).generate(requests, greedy)
    monkeypatch.setattr(tiles, "LARGE", 0)
    Decoder(model, takes_over=False).generate(requests, greedy)
    Decoder(model).generate(requests, sampled)
    assert made == []
    Decoder(model).generate(requests[:1], greedy)
    Decoder(model).generate(requests[:1], greedy)  # another decoder of the same model finds it
    assert len(made) == 1


MAKING = """
import resource
import torch
from ttt_dist.model.screen import Screen
from ttt_dist.model.tiles import Tiles

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

tiles = Tiles(torch.randn(1 << 15, 768))
Screen(Tiles(torch.randn(4096, 768)))  # what torch takes once
before = peak()
screen = Screen(tiles)
print(peak() - before)
"""


def test_a_screen_takes_little_more_than_its_copy_while_it_is_made() -> None:
    """A tile at once made it 50 to 110: decoding's peak was anywhere between 1.6 and 2.0 GB."""
    out = subprocess.run([sys.executable, "-c", MAKING], check=True, capture_output=True, text=True).stdout
    assert float(out) < 34  # the copy: 24 MiB
