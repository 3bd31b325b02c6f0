"""Which slots of the order each step takes: batch sizes by stages, and what is passed over."""

from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.data.blend import BlendOrder, SingleSource, Stage, past
from ttt_dist.data.step_sizes import StepSizes

RISING = StepSizes.of(4, [(10, 8), (20, 16)])


def test_batches_grow_at_their_steps() -> None:
    assert [RISING.global_batch(step) for step in (0, 9, 10, 19, 20, 99)] == [4, 4, 8, 8, 16, 16]
    assert [RISING.trained(step) for step in (0, 10, 11, 20, 21)] == [0, 40, 48, 120, 136]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=4), st.integers(0, 60), st.integers(1, 7))
def test_packs_before_a_step_are_those_of_the_steps_before(
    lengths: list[tuple[int, int]], step: int, first: int
) -> None:
    start, stages = 0, []
    for length, size in lengths:
        start += length
        stages.append((start, size))
    sizes = StepSizes.of(first, stages)
    assert sizes.trained(step) == sum(sizes.global_batch(number) for number in range(step))
    for num_packs in range(1, 40):
        steps = sizes.steps_of(num_packs)
        assert sizes.trained(steps) >= num_packs > sizes.trained(steps - 1)


def test_a_single_source_goes_on_behind_what_is_skipped() -> None:
    plain = SingleSource("train", 1000, 3, StepSizes.of(4))
    cut = SingleSource("train", 1000, 3, StepSizes.of(4, skip=[(5, 8), (20, 21)]))
    read = {step: [plain.sample_at(step, slot) for slot in range(4)] for step in range(60)}
    for step in range(40):
        behind = step + (3 if step >= 5 else 0) + (1 if step >= 20 else 0)
        assert [cut.sample_at(step, slot) for slot in range(4)] == read[behind]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
def test_a_blend_reads_every_slot_once_but_the_skipped_ones(first: int, length: int, seed: int) -> None:
    stages = [Stage.of(0, {"a": Fraction(2), "b": Fraction(1)}), Stage.of(25, {"b": Fraction(1)})]
    sizes = StepSizes.of(2, [(12, 6), (30, 3)])
    skip = StepSizes.of(2, [(12, 6), (30, 3)], [(first, first + length)])
    plain, cut = (BlendOrder({"a": 5000, "b": 5000}, stages, seed, each) for each in (sizes, skip))
    passed = skip.trained(first + length) - skip.trained(first)
    num_read = {name: before + after for name, before, after in _sums(cut, 60)}
    assert sum(num_read.values()) == skip.trained(60)
    found = [cut.sample_at(step, slot) for step in range(60) for slot in range(skip.global_batch(step))]
    assert len(set(found)) == len(found)  # of sources that are larger than all steps
    total = cut.counts(60)
    assert sum(total.values()) == sizes.trained(60) + passed
    offered = {(name, *cut.packs[name].nth(number)) for name in total for number in range(total[name])}
    read = {(place.source, place.pack, place.epoch) for place in found}
    assert read <= offered and len(offered) - len(read) == passed
    assert [plain.sample_at(step, 0) for step in range(first)] == [cut.sample_at(step, 0) for step in range(first)]


def _sums(order: BlendOrder, steps: int) -> list[tuple[str, int, int]]:
    found = {"a": 0, "b": 0}
    for step in range(steps):
        for slot in range(order.sizes.global_batch(step)):
            found[order.sample_at(step, slot).source] += 1
    return [(name, count, 0) for name, count in found.items()]


def test_two_skips_at_one_step_pass_over_as_much_each() -> None:
    sizes = StepSizes.of(4, [(10, 8)], [(8, 10), (8, 10)])  # the second time, too, steps of 4
    assert sizes.first_slot(8) == 32 + 2 * 8


def test_a_stage_that_a_skip_moves_up_is_of_the_past_once_it_has_begun() -> None:
    def stage(weight: int) -> dict[str, Any]:
        blend = {name: {"weight": 1, "epochs": None, "shard": name} for name in "ab"}
        return {
            "blend": blend,
            "train": "",
            "skip": [[2, 5]],
            "stages": [{"from_step": 10, "weights": {"a": weight, "b": 1}}],
        }

    assert [past(stage(1), step) == past(stage(2), step) for step in (7, 8, 11)] == [True, False, False]
