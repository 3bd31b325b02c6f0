"""The objective's settings: presets as they were, masks of an exact count, audio learnt autoregressively, stages, the past."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from itertools import permutations
from math import comb, factorial
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import random_packs
from tests.structures import tiny_layout
from ttt_dist.config.loader import load_config, save_config, to_dict
from ttt_dist.config.objective import Objective, ObjectiveStage
from ttt_dist.config.reading import build
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.corruption import Corrupted, Draw, corrupt, draw
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.training.dry_run import describe_objective
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout()
TENSORS = ("input_ids", "position_ids", "sample_ids", "span_ids", "ar_targets", "ar_weights", "nar_targets",
           "nar_weights", "nar_bins")  # fmt: skip
# Of the batches below, made before there were masks of an exact count (revision f7f6f4f).
GOLDEN = {
    ("paper", "ttt", "sample"): "fc2fb8b4be2eb40b",
    ("paper", "ttt", "token"): "4dfa41a46b611877",
    ("paper", "ar", "sample"): "c77bb17e46971e95",
    ("paper", "ar", "token"): "1eff1dfcefaefe80",
    ("paper", "nar", "sample"): "e29f1b2664bc3917",
    ("paper", "nar", "token"): "bca058689fce699a",
    ("released", "ttt", "sample"): "08fafa12b104242c",
    ("released", "ttt", "token"): "b68614f95e0b57bd",
    ("released", "ar", "sample"): "c77bb17e46971e95",
    ("released", "ar", "token"): "1eff1dfcefaefe80",
    ("released", "nar", "sample"): "e29f1b2664bc3917",
    ("released", "nar", "token"): "bca058689fce699a",
}


def digest(objective: Objective) -> str:
    """Of every tensor of twelve batches."""
    found = hashlib.sha256()
    for step, packs in enumerate(random_packs.global_batches(6, 8)):
        for first in (0, 4):
            batch = collate(
                packs[first : first + 4], random_packs.LAYOUT, objective, 1234, [step] * 4, random_packs.SEQ_LEN
            )
            for name in TENSORS:
                found.update(getattr(batch, name).numpy().tobytes())
            found.update(str(batch.num_loss_units).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("preset", "kind", "normalisation"), GOLDEN, ids=str)
def test_the_former_presets_are_what_they_were(preset: str, kind: str, normalisation: str) -> None:
    known = GOLDEN[preset, kind, normalisation]
    for name in (preset, "corrected") if preset == "paper" else (preset,):
        read = build(Objective, {"preset": name, "kind": kind, "normalisation": normalisation})
        assert digest(read) == known
    changed = digest(Objective(preset="recommended", kind=kind, normalisation=normalisation))
    assert (changed == known) == (kind == "ar")


def spoken(num_maskable: int, *more: int, prompt: Sequence[int] = (3, 4)) -> Sample:
    """A prompt, two tokens of text, and a last span of so many audio tokens, its end included."""
    codes = LAYOUT.code_ids(np.arange(num_maskable - 1) % LAYOUT.num_codes)
    said = [1, LAYOUT.begin_of_quad, *codes, LAYOUT.end_of_audio_span_last, *more]
    return Sample.of([Segment(np.array(prompt, np.int32), False), Segment(np.array(said, np.int32), True)])


def noise(t: float, tokens: np.ndarray) -> Draw:
    """Nothing but masks: neither mixed, nor truncated, nor a prefix preserved."""
    return Draw(mix=1, truncate=1, keep=0, prefix=1, first_span=0, t=t, tokens=tokens, audio_ar=0, draft=1)


def masked_places(corrupted: Corrupted) -> tuple[int, ...]:
    return tuple(np.flatnonzero(corrupted.nar_weights).tolist())


@pytest.mark.parametrize("normalisation", ["sample", "token"])
@pytest.mark.parametrize("num_maskable", range(1, 7))
def test_the_expected_weight_of_every_mask_is_that_of_bernoulli_masks(num_maskable: int, normalisation: str) -> None:
    """Over all counts and all orders of the tokens, for each token and each set of other masked ones."""
    n, sample = num_maskable, spoken(num_maskable)
    objective = Objective(normalisation=normalisation, p_trunc=0.0)
    expected: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for count in range(1, n + 1):
        for order in permutations(range(n)):
            tokens = np.concatenate([np.zeros(4), (np.array(order) + 0.5) / n])
            found = corrupt(sample, LAYOUT, objective, noise((count - 0.5) / n, tokens))
            places = masked_places(found)
            assert len(places) == count and found.loss_denominator == (1 if normalisation == "sample" else 2 + n)
            for place in places:
                weight = float(found.nar_weights[place]) / factorial(n) / n
                expected[place, tuple(other for other in places if other != place)] += weight  # type: ignore[assignment]
    assert len(expected) == n * 2 ** (n - 1)
    for (_, others), weight in expected.items():
        s = len(others)  # the integral of p^s (1 - p)^(n - 1 - s) over p in 0..1, the power multiplied out
        terms = (Fraction((-1) ** j * comb(n - 1 - s, j), s + j + 1) for j in range(n - s))
        integral = sum(terms, Fraction(0))
        assert integral == Fraction(factorial(s) * factorial(n - 1 - s), factorial(n))
        assert weight == pytest.approx(float(integral) / (n if normalisation == "sample" else 1), rel=1e-6)


@pytest.mark.parametrize("normalisation", ["sample", "token"])
def test_a_draft_is_all_from_a_place_on_behind_causal_codes(normalisation: str) -> None:
    """Each place of a span with the same probability, and the weight of 1 over the masks that there are."""
    n, sample = 5, spoken(5, 7, 8)
    objective = Objective(normalisation=normalisation, p_trunc=0.0, p_draft=0.3, audio_ar=0.5)
    for place in range(n):
        for audio_ar, is_taught in ((0.4, True), (0.6, False)):
            tokens = np.concatenate([np.zeros(4), [(place + 0.5) / n], np.ones(n + 1) * 0.99])
            numbers = replace(noise(0.5, tokens), draft=0.2, audio_ar=audio_ar)
            found, start = corrupt(sample, LAYOUT, objective, numbers), 4 + place
            assert masked_places(found) == tuple(range(start, 4 + n))
            assert found.span_ids.tolist() == [0] * start + [1] * (n - place) + [0, 0]
            count = n - place
            assert found.nar_weights[start] == pytest.approx(1 / count if normalisation == "sample" else n / count)
            assert set(found.nar_bins[start : 4 + n]) == {min(5 * count // n, 4) + 1}
            # Text, the opener, and the codes before the masks with the first that is masked; not what follows the last mask.
            codes = set(range(3, start)) if is_taught else set()
            assert set(np.flatnonzero(found.ar_weights)) == {1, 2, 9} | codes
    plain = corrupt(sample, LAYOUT, objective, replace(numbers, draft=0.3))
    assert plain.span_ids.tolist() == [0] * 4 + [1] * n + [0, 0]


def test_masks_come_as_often_as_they_should() -> None:
    """Of 4 maskable tokens each count a quarter of the time, and of one count every set alike: chi square of 15 masks."""
    sample, objective, epochs = spoken(4), Objective(p_mix=0.0, p_prefix=0.0, p_trunc=0.0), 8000
    found = Counter(
        masked_places(corrupt(sample, LAYOUT, objective, draw(sample, 3, epoch))) for epoch in range(epochs)
    )
    assert len(found) == 15
    wanted = {places: epochs / 4 / comb(4, len(places)) for places in found}
    assert (
        sum((found[places] - wanted[places]) ** 2 / wanted[places] for places in found) < 36.1
    )  # 99.9 % of 14 degrees


def test_the_draw_decides_the_count_and_who_is_masked() -> None:
    sample = spoken(5)
    tokens = np.concatenate([np.zeros(4), [0.9, 0.2, 0.5, 0.2, 0.1]])
    for time, places in (
        (0.0, {8}),
        (0.39, {8, 5}),
        (0.4, {8, 5, 7}),
        (0.999999, {4, 5, 6, 7, 8}),
        (1.0, {4, 5, 6, 7, 8}),
    ):
        found = corrupt(sample, LAYOUT, Objective(), noise(time, tokens))
        assert set(masked_places(found)) == places
        assert found.nar_weights.sum() == pytest.approx(1.0)
        assert set(found.nar_bins.tolist()) - {0} == {min(len(places) + 1, 5)}  # k / 5 is where bin k + 1 begins
    alike = spoken(64)  # of equal numbers the earlier ones go first
    tokens = np.concatenate([np.zeros(4), np.tile([0.5, 0.2], 32)])
    found = corrupt(alike, LAYOUT, Objective(), noise(16.5 / 64, tokens))
    assert masked_places(found) == tuple(range(5, 39, 2))
    mute = Sample.of([Segment(np.array([3, 4, 5], np.int32), True)])
    assert not corrupt(mute, LAYOUT, Objective(normalisation="token"), draw(mute, 0, 0)).nar_weights.any()


@pytest.mark.parametrize("normalisation", ["sample", "token"])
def test_where_nothing_is_noised_audio_is_learnt_from_left_to_right(normalisation: str) -> None:
    prompt = [LAYOUT.begin_of_audio, LAYOUT.first_code, LAYOUT.first_code + 1, LAYOUT.end_of_audio]
    sample, objective = spoken(3, LAYOUT.im_end, prompt=prompt), Objective(audio_ar=0.5, normalisation=normalisation)
    numbers = replace(draw(sample, 0, 0), mix=0.1, truncate=1.0, audio_ar=0.4)
    found = corrupt(sample, LAYOUT, objective, numbers)
    assert found.input_ids.tolist() == sample.ids.tolist() and not found.nar_weights.any()
    assert found.ar_targets[3:-1].tolist() == sample.ids[4:].tolist()
    assert found.span_ids.tolist() == [0, 1, 1, *[0] * 7]  # the prompt's stay as prompt_audio says
    assert found.ar_weights[3:-1] == pytest.approx(1 / 6 if normalisation == "sample" else 1.0)
    assert found.loss_denominator == (1 if normalisation == "sample" else 6)
    text_alone = corrupt(sample, LAYOUT, objective, replace(numbers, audio_ar=0.5))
    assert np.flatnonzero(text_alone.ar_weights).tolist() == [3, 4, 8]
    assert text_alone.span_ids.tolist() == [0, 1, 1, 0, 0, 0, 2, 2, 2, 0]
    noised = corrupt(sample, LAYOUT, objective, replace(numbers, mix=0.9))
    assert noised.nar_weights.any() and noised.span_ids.tolist() == text_alone.span_ids.tolist()
    together = corrupt(sample, LAYOUT, objective, replace(numbers, mix=0.9), mix=True)  # as its micro-batch has it
    assert all(np.array_equal(getattr(together, f.name), getattr(found, f.name)) for f in fields(found))


def test_a_cut_span_is_learnt_from_left_to_right_up_to_the_cut() -> None:
    sample = spoken(41, LAYOUT.im_end)
    numbers = replace(draw(sample, 0, 0), mix=0.0, truncate=0.0, keep=0.0)
    found = corrupt(sample, LAYOUT, Objective(), numbers)
    assert len(found.input_ids) == 4 + 12  # floor(0.3 x 40) codes
    assert np.flatnonzero(found.ar_weights).tolist() == list(range(1, 15))


def stages(*found: ObjectiveStage, **base: object) -> Objective:
    return Objective(stages=list(found), **base)  # type: ignore[arg-type]


def test_a_step_has_the_settings_of_its_stage() -> None:
    curriculum = stages(
        ObjectiveStage(from_step=0, kind="ar"),
        ObjectiveStage(from_step=4, p_mix=0.0),
        ObjectiveStage(from_step=6, preset="released"),
        p_trunc=0.2,
    )
    assert [curriculum.stage_at(step) for step in (0, 3, 4, 5, 6, 10**9)] == [0, 0, 1, 1, 2, 2]
    assert (curriculum.at(3).kind, curriculum.at(3).p_mix) == ("ar", 0.3)
    assert (curriculum.at(4).kind, curriculum.at(4).p_mix, curriculum.at(4).p_trunc) == ("ttt", 0.0, 0.2)
    assert (curriculum.at(5).masking, curriculum.at(5).audio_ar, curriculum.at(5).stages) == ("exact_count", 1.0, [])
    assert (curriculum.at(6).masking, curriculum.at(6).audio_ar, curriculum.at(6).keeps_masked_ar) == (
        "bernoulli",
        0.0,
        True,
    )
    mixed = ObjectiveStage(from_step=0, preset="recommended", audio_ar=0.25)
    last = stages(mixed, masking="bernoulli", audio_ar=0.5).at(0)
    assert (last.masking, last.audio_ar) == ("exact_count", 0.25)  # a preset counts before what the base says
    assert (Objective().stage_at(5), Objective().at(5)) == (-1, Objective().resolved())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{from_step: 1}]", r"objective.stages.0.from_step=1: the first stage begins at step 0"),
        ("[{}, {from_step: 0}]", r"objective.stages.1.from_step=0 must be above 0"),
        ("[{}, {from_step: 5, p_mix: 2}]", r"objective.stages.1.p_mix must lie in \[0, 1\], not 2"),
        ("[{kind: both}]", r"objective.stages.0.kind must be one of ttt, ar, nar or null, not 'both'"),
        (
            "[{preset: best}]",
            r"objective.stages.0.preset must be one of recommended, paper, released or null, not 'best'",
        ),
        ("[{p_mixed: 0.1}]", r"unknown key `objective.stages.0.p_mixed`; did you mean `objective.stages.0.p_mix`"),
        ("[{stages: []}]", r"unknown key `objective.stages.0.stages`; did you mean `objective.stages"),
    ],
)
def test_a_wrong_stage_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(f"objective: {{stages: {text}}}")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.yaml")


def test_what_is_recorded_leaves_nothing_open_and_means_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("objective: {stages: [{kind: ar}, {from_step: 4, preset: corrected}]}")
    config = load_config(tmp_path / "c.yaml")
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    recorded = to_dict(config)["objective"]
    assert (recorded["preset"], recorded["masking"], recorded["audio_ar"]) == ("recommended", "exact_count", 1.0)
    assert (config.objective.at(4).preset, config.objective.at(4).masking) == ("paper", "bernoulli")
    for overrides, masking in (
        (["preset=paper"], "bernoulli"),
        (["preset=paper", "masking=exact_count"], "exact_count"),
    ):
        found = load_config(tmp_path / "c.yaml", ["objective.stages=[]", *(f"objective.{text}" for text in overrides)])
        assert (found.objective.masking, found.objective.stages) == (masking, [])
    later = load_config(
        tmp_path / "c.yaml", ["objective.stages.1.from_step=9", "objective.stages.1.p_mix=0.5"]
    ).objective
    assert (later.at(8).kind, later.at(9).p_mix) == ("ar", 0.5)


def test_a_run_goes_on_by_what_it_began_with_where_the_recipe_leaves_it_open() -> None:
    began = Objective(preset="paper", p_mix=0.5).resolved()
    assert Objective(p_mix=0.2).going_on(began) == Objective(preset="paper", p_mix=0.2).resolved()
    assert Objective(audio_ar=0.5).going_on(began) == Objective(preset="paper", audio_ar=0.5).resolved()
    assert Objective(preset="recommended").going_on(began) == Objective().resolved()
    assert Objective().going_on(Objective(preset="released", masking="exact_count")).masking == "exact_count"


def test_the_past_is_what_the_steps_before_were_trained_by() -> None:
    ar, then_ttt = Objective(kind="ar"), stages(ObjectiveStage(from_step=0, kind="ar"), ObjectiveStage(from_step=4))
    assert then_ttt.past(4) == ar.past(4) and then_ttt.past(5) != ar.past(5)
    assert then_ttt.past(5) == ar.past(5) | {"objective from step 4": str(Objective())}
    assert ar.past(9) == Objective(preset="released", kind="ar", p_mix=0.7, prompt_audio="causal").past(9)
    in_two = stages(ObjectiveStage(from_step=0), ObjectiveStage(from_step=4, kind="ttt"), p_mix=0.1)
    assert in_two.past(9) == Objective(p_mix=0.1).past(9)
    assert build(Objective, {"preset": "corrected"}).past(9) == Objective(
        preset="paper", masking="bernoulli", audio_ar=0.0
    ).past(9)


def test_a_dry_run_names_the_stages_that_begin() -> None:
    [line] = describe_objective(Objective(preset="paper", p_mix=0.1), 1000)
    assert line.startswith(
        "ttt, masking bernoulli, audio_ar 0.0, p_mix 0.1, p_prefix 0.3, p_trunc 0.5, mix_unit sample"
    )
    curriculum = stages(
        ObjectiveStage(from_step=0, kind="ar"),
        ObjectiveStage(from_step=400),
        ObjectiveStage(from_step=5000, kind="nar"),
    )
    told = describe_objective(curriculum, 1000)
    assert told[0] == "steps 0 to 400: ar, normalisation sample"
    assert told[1].startswith("steps 400 to 1,000: ttt, masking exact_count")
    assert told[2].startswith("held-out loss: ttt") and len(told) == 3
