"""Whom figures of the same packs on several ranks speak against. (Of real ranks: tests/distributed/test_suspect_step.py.)"""

import json
import math

import pytest

from ttt_dist.training.suspect_step import Figures, Verdict, judge

NAN, INF = math.nan, math.inf
SOUND = (10.0, 2.0)
"""Loss and gradient norm of any packs."""


def verdict(
    again: list[tuple[float, float]],
    elsewhere: list[tuple[float, float]],
    first: list[float] | None = None,
    norm: float = NAN,
    is_suspect: bool = True,
) -> Verdict:
    """Of one rank per replica; `elsewhere[n]` is what rank n made of the packs of the next one."""
    size = len(again)
    here = [Figures(rank, f"n{rank}", rank, *figures) for rank, figures in enumerate(again)]
    there = [Figures(rank, f"n{rank}", (rank + 1) % size, *figures) for rank, figures in enumerate(elsewhere)]
    return judge(first or [loss for loss, _ in again], here, there, norm, is_suspect)


@pytest.mark.parametrize("bad", [(NAN, NAN), (10.0, NAN), (10.0, INF), (10.0, 900.0), (-INF, 2.0)])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_rank_that_is_alone_with_its_figures_is_a_bad_device(bad: tuple[float, float], size: int) -> None:
    figures = [SOUND] * (size - 1) + [bad]
    found = verdict(figures, figures)  # whatever packs it gets
    assert (found.kind, found.ranks) == ("device", [size - 1])
    assert f"rank {size - 1} (n{size - 1}) has loss sum {bad[0]:.6g}, gradient norm {bad[1]:.6g} where" in found.told


def test_a_device_that_is_bad_only_once_in_a_while_is_named_too() -> None:
    found = verdict([SOUND, SOUND, SOUND], [SOUND, SOUND, (10.0, NAN)])
    assert (found.kind, found.ranks) == ("device", [2])
    found = verdict([SOUND, SOUND], [SOUND, SOUND], first=[10.0, NAN], norm=2.0, is_suspect=False)
    assert (found.kind, found.ranks) == ("device", [1])
    assert "had loss sum nan before" in found.told


def test_packs_that_hurt_everywhere_are_data() -> None:
    found = verdict([SOUND, (NAN, NAN), SOUND], [(NAN, NAN), SOUND, SOUND])
    assert (found.kind, found.ranks) == ("data", [1])
    assert found.told.startswith("the same figures on another rank too: data: rank 1 (n1) has loss sum nan")


def test_of_a_spike_the_packs_with_the_largest_gradient_are_named() -> None:
    found = verdict([SOUND, (11.0, 3.0), (12.0, 500.0)], [(11.01, 3.01), (12.01, 501.0), SOUND], norm=170.0)
    assert (found.kind, found.ranks) == ("data", [2])


def test_two_causes_at_once() -> None:
    """Bad packs of rank 0, and rank 2 is broken: the device comes first."""
    bad = (NAN, NAN)
    assert verdict([bad, SOUND, bad], [SOUND, SOUND, bad]).ranks == [2]


def test_what_does_not_come_again_and_what_only_the_sum_shows_are_nobodys() -> None:
    found = verdict([SOUND, SOUND], [SOUND, SOUND], norm=2.0, is_suspect=False)
    assert (found.kind, found.ranks) == ("unclear", [])
    assert "gradient norm is 2 now: a device or a link" in found.told
    found = verdict([SOUND, SOUND], [SOUND, SOUND], norm=INF)
    assert (found.kind, found.ranks) == ("unclear", [])
    assert "the sum of their gradients is not" in found.told


def test_without_another_rank_what_comes_again_is_data() -> None:
    found = verdict([(NAN, NAN)], [])
    assert (found.kind, found.ranks) == ("data", [0])
    assert "no other rank to ask: data, or a device: rank 0" in found.told
    assert verdict([SOUND], [], first=[NAN], norm=2.0, is_suspect=False).kind == "device"


def test_where_all_packs_hurt_on_all_ranks_the_weights_are_suspected() -> None:
    found = verdict([(NAN, NAN)] * 3, [(NAN, NAN)] * 3)
    assert (found.kind, found.ranks) == ("data", [0, 1, 2])
    assert "of all packs: weights that have diverged, rather than data" in found.told


def test_rounding_is_no_difference() -> None:
    assert verdict([(10.0, NAN)] * 2, [(10.1, INF)] * 2).kind == "data"
    assert verdict([(10.0, 100.0)] * 2, [(9.9, 99.0)] * 2, norm=140.0).kind == "data"


def test_the_diary_takes_any_figure() -> None:
    record = verdict([SOUND, (NAN, INF)], [(NAN, INF), SOUND]).record
    assert json.loads(json.dumps(record, allow_nan=False))["figures"][0]["loss"] == "nan"
