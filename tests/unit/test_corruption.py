"""A brute-force reading of docs/method.md#the-objective, and rule 2: noise is a pure function of (seed, sample, epoch)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed.random_packs import LAYOUT as SPEECH_LAYOUT
from tests.distributed.random_packs import random_sample
from tests.structures import packs, samples, tiny_layout
from ttt_dist.config.objective import Objective
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.corruption import Draw, corrupt, draw, p_bin, truncated_length
from ttt_dist.sequence.sample import TASKS, Sample, Segment, task_of
from ttt_dist.sequence.visibility import dense_mask
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout(shuffle_seed=5)
probabilities = st.sampled_from([0.0, 0.3, 1.0])
objectives = st.builds(
    Objective,
    preset=st.sampled_from(["recommended", "paper", "released"]),
    kind=st.sampled_from(["ttt", "ttt", "ar", "nar"]),
    masking=st.sampled_from([None, "exact_count", "bernoulli"]),
    noise_schedule=st.sampled_from(["linear", "cosine"]),
    audio_ar=st.sampled_from([None, 0.0, 0.5]),
    p_mix=probabilities,
    p_prefix=probabilities,
    p_trunc=probabilities,
    p_draft=probabilities,
    mix_unit=st.sampled_from(["sample", "micro_batch"]),
    normalisation=st.sampled_from(["sample", "token"]),
)


def is_code(token: int) -> bool:
    return LAYOUT.first_code <= token < LAYOUT.first_code + LAYOUT.num_codes


def is_audio(token: int) -> bool:
    return is_code(token) or token in (LAYOUT.mask, LAYOUT.end_of_audio_new, LAYOUT.end_of_audio_span_last)


def brute_force_sample(
    sample: Sample, objective: Objective, numbers: Draw, mixed: bool
) -> tuple[list[int], dict[int, int], dict[int, int], float, float, int]:
    """Inputs, AR targets {i: token}, NAR targets {i: token}, p, a NAR target's weight and the number of maskable tokens, by
    docs/method.md."""
    is_recommended = objective.preset == "recommended"
    ids, target = [int(i) for i in sample.ids], [bool(t) for t in sample.is_target]
    ttt = objective.kind == "ttt"
    if ttt and numbers.truncate < objective.p_trunc:  # SST
        i = len(ids) - 1
        while i >= 0 and target[i] and not is_audio(ids[i]):
            i -= 1
        if i >= 0 and target[i] and is_audio(ids[i]):
            while i > 0 and target[i - 1] and is_audio(ids[i - 1]):
                i -= 1
            n = sum(is_code(t) for t in ids[i:])
            if n > 10:
                choices = list(range(max(math.floor(0.3 * n), 5), math.floor(0.9 * n) + 1))
                keep = choices[int(numbers.keep * len(choices))]
                ids, target = ids[: i + keep], target[: i + keep]
    share, rate = numbers.t, 1.0
    if objective.noise_schedule == "cosine":
        share, rate = math.cos(math.pi / 2 * (1 - numbers.t)), math.pi / 2 * math.sin(math.pi / 2 * (1 - numbers.t))
    p = (1 - 1e-3) * share + 1e-3
    groups: list[list[int]] = []  # response spans
    for i, token in enumerate(ids):
        if target[i] and is_audio(token):
            if i == 0 or not is_audio(ids[i - 1]):
                groups.append([])
            groups[-1].append(i)
    if objective.kind == "nar":
        candidates = [i for i in range(len(ids)) if target[i]]
    elif objective.kind == "ar" or mixed:
        candidates = []
    else:
        first = int(numbers.first_span * len(groups)) if numbers.prefix < objective.p_prefix else 0  # PPM
        candidates = [i for group in groups[first:] for i in group]
    if candidates and (objective.masking or ("exact_count" if is_recommended else "bernoulli")) == "exact_count":
        count = 1 + math.floor(share * len(candidates))
        chosen = sorted(candidates, key=lambda i: (numbers.tokens[i], i))[:count]
        p = count / len(candidates)
    else:
        chosen = [i for i in candidates if numbers.tokens[i] < p]
    is_draft = ttt and not mixed and numbers.draft < objective.p_draft
    if is_draft:
        kept = [group for group in groups if group[0] in candidates]
        chosen = [i for group in kept for i in group[int(numbers.tokens[group[0]] * len(group)) :]]
        p, rate = len(chosen) / max(len(candidates), 1) or 1.0, 1.0
    nar = {i: ids[i] for i in sorted(chosen)}
    audio_ar = float(is_recommended) if objective.audio_ar is None else objective.audio_ar
    all_ar = objective.kind == "ar" or (ttt and (mixed or is_draft) and numbers.audio_ar < audio_ar)
    ar = {}
    for i in range(len(ids) - 1):
        wanted = all_ar or (ttt and not is_audio(ids[i + 1]))
        if target[i + 1] and wanted and (i not in nar or objective.preset == "released"):
            ar[i] = ids[i + 1]
    return [LAYOUT.mask if i in nar else t for i, t in enumerate(ids)], ar, nar, p, rate / p, len(candidates)


def brute_force_loss(
    rows: list[list[Sample]], objective: Objective, logits: torch.Tensor, seed: int
) -> tuple[float, list[list[int]]]:
    """Loss of the batch from logits [B, S, V] in double, and the inputs; one term at a time."""
    log_probs = torch.log_softmax(logits.double(), -1)
    shared: bool | None = None
    if objective.mix_unit == "micro_batch" or objective.preset == "released":
        first = [sample for pack in rows for sample in pack][:1]
        shared = bool(first) and draw(first[0], seed, 0).mix < objective.p_mix
    total, count, inputs = 0.0, 0.0, []
    for row, pack in enumerate(rows):
        offset, inputs_row = 0, []
        for sample in pack:
            numbers = draw(sample, seed, 0)
            mixed = numbers.mix < objective.p_mix if shared is None else shared
            ids, ar, nar, _, weight, num_maskable = brute_force_sample(sample, objective, numbers, mixed)
            ar_terms = [-log_probs[row, offset + i, token].item() for i, token in ar.items()]
            nar_terms = [-log_probs[row, offset + i, token].item() * weight for i, token in nar.items()]
            if objective.normalisation == "sample":
                total += sum(ar_terms) / max(len(ar_terms), 1) + sum(nar_terms) / max(num_maskable, 1)
                count += 1
            else:
                total += sum(ar_terms) + sum(nar_terms)
                count += len(ar_terms) + num_maskable
            inputs_row += ids
            offset += len(ids)
        inputs.append(inputs_row)
    return total / max(count, 1), inputs


def loss_of(batch: Batch, logits: torch.Tensor) -> float:
    log_probs = torch.log_softmax(logits.double(), -1)
    ar = log_probs.gather(-1, batch.ar_targets.unsqueeze(-1)).squeeze(-1)
    nar = log_probs.gather(-1, batch.nar_targets.unsqueeze(-1)).squeeze(-1)
    return -float((ar * batch.ar_weights + nar * batch.nar_weights).sum()) / max(batch.num_loss_units, 1)


@settings(max_examples=150)
@given(packs(LAYOUT), objectives, st.integers(0, 2**31))
def test_loss_equals_brute_force(rows: list, objective: Objective, seed: int) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 2
    batch = collate(rows, LAYOUT, objective, seed, [0] * len(rows), seq_len)
    logits = torch.randn(len(rows), seq_len, LAYOUT.padded_vocab_size, generator=torch.Generator().manual_seed(seed))
    expected, inputs = brute_force_loss(rows, objective, logits, seed)
    for row, ids in enumerate(inputs):
        assert batch.input_ids[row, : len(ids)].tolist() == ids
        assert not batch.sample_ids[row, len(ids) :].any()
    assert loss_of(batch, logits) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=100)
@given(packs(LAYOUT), objectives, st.integers(0, 2**31))
def test_bins_of_p_stand_at_masked_positions(rows: list, objective: Objective, seed: int) -> None:
    """Bin b of 1..5 holds p in [(b - 1) / 5, b / 5); whatever has no NAR target is in bin 0."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 2
    batch = collate(rows, LAYOUT, objective, seed, [0] * len(rows), seq_len)
    assert torch.equal(batch.nar_bins != 0, batch.nar_weights != 0)
    for row, pack in enumerate(rows):
        for number, sample in enumerate(pack, start=1):
            found = set(batch.nar_bins[row][batch.sample_ids[row] == number].tolist()) - {0}
            p = brute_force_sample(sample, objective, draw(sample, seed, 0), mixed=False)[3]
            assert found <= {min(math.floor(5 * p) + 1, 5)}


def test_p_of_1_is_in_the_last_bin() -> None:
    assert [p_bin(p) for p in (0.001, 0.19, 0.2, 0.99, 1.0)] == [1, 1, 2, 5, 5]


@settings(max_examples=100)
@given(packs(LAYOUT), objectives, st.integers(0, 2**31))
def test_visible_pairs_are_those_of_the_mask(rows: list, objective: Objective, seed: int) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 2
    batch = collate(rows, LAYOUT, objective, seed, [0] * len(rows), seq_len)
    mask = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids)
    assert batch.visible_pairs == int(mask.sum())


@settings(max_examples=50)
@given(st.lists(samples(LAYOUT), min_size=2, max_size=4), st.integers(0, 99))
def test_noise_follows_the_sample_not_its_place(group: list, seed: int) -> None:
    """The same sample alone, in another pack and another order: same inputs, targets, weights; other epochs differ."""
    objective = Objective(p_mix=0.3)
    seq_len = sum(map(len, group))
    together = collate([group], LAYOUT, objective, seed, [2], seq_len)
    apart = collate([[s] for s in reversed(group)], LAYOUT, objective, seed, [2] * len(group), seq_len)
    start = 0
    for number in range(len(group)):
        row = len(group) - 1 - number
        length = int((apart.sample_ids[row] == 1).sum())
        for name in ("input_ids", "position_ids", "ar_targets", "ar_weights", "nar_targets", "nar_weights"):
            assert torch.equal(
                getattr(together, name)[0, start : start + length], getattr(apart, name)[row, :length]
            ), name
        start += length
    assert together.num_loss_units == apart.num_loss_units


def long_sample(num_codes: int = 60, target: bool = True) -> Sample:
    codes = LAYOUT.code_ids(np.arange(num_codes) % LAYOUT.num_codes)
    ids = np.concatenate([[1, 2, LAYOUT.begin_of_quad], codes, [LAYOUT.end_of_audio_span_last, LAYOUT.im_end]])
    return Sample.of([Segment(np.array([3, 4], np.int32), False), Segment(ids.astype(np.int32), target)])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sample = long_sample()
    reference = draw(sample, 1, 0)
    np.testing.assert_array_equal(draw(sample, 1, 0).tokens, reference.tokens)
    assert draw(sample, 1, 1).t != reference.t
    assert draw(sample, 2, 0).t != reference.t
    other_target = Sample.from_arrays(sample.ids, ~sample.is_target)
    assert draw(other_target, 1, 0).t != reference.t


def test_known_draw_is_stable() -> None:
    """Golden numbers: a change here reshuffles the noise of every run that people resume."""
    numbers = draw(long_sample(), seed=1234, epoch=3)
    assert [round(x, 6) for x in (numbers.mix, numbers.t, float(numbers.tokens[0]))] == [
        0.492384,
        0.671096,
        0.186532,
    ]


def test_statistics_of_the_strategies() -> None:
    """Over many epochs: how often each strategy acts, the range of SST, and E[masked / p] = number of maskable tokens."""
    sample, objective = long_sample(60), Objective()
    outcomes = [corrupt(sample, LAYOUT, objective, draw(sample, 0, epoch)) for epoch in range(4000)]
    lengths = np.array([len(o.input_ids) for o in outcomes])
    assert abs((lengths < len(sample)).mean() - 0.5) < 0.03
    kept = lengths[lengths < len(sample)] - 5  # codes kept
    assert kept.min() == 18 and kept.max() == 54
    unbiased = np.mean([o.nar_weights.sum() for o in outcomes])  # each sample's weights average to 1 where it is noised
    assert abs(unbiased - 0.7) < 0.05


def test_the_preserved_prefix_is_drawn_uniformly_and_stays_clean() -> None:
    """PPM with three response spans: one, two or three of them stay in the NAR loss, equally often."""
    codes = LAYOUT.code_ids(np.arange(8) % LAYOUT.num_codes)
    span = [LAYOUT.begin_of_audio, *codes, LAYOUT.end_of_audio_new]
    sample = Sample.of([Segment(np.array([3, 4]), False), Segment(np.array([1, *span, 2, *span, 5, *span]), True)])
    objective = Objective(p_mix=0.0, p_trunc=0.0, p_prefix=1.0)
    first_noised = []
    for epoch in range(1500):
        numbers = replace(draw(sample, 0, epoch), t=1.0)  # p = 1: all that may be masked is
        outcome = corrupt(sample, LAYOUT, objective, numbers)
        masked = outcome.input_ids == LAYOUT.mask
        first_noised.append(int(np.flatnonzero(masked)[0]))
        np.testing.assert_array_equal(masked, outcome.nar_weights > 0)
        assert outcome.nar_weights.sum() == pytest.approx(1.0)  # what is preserved left the divisor too
    starts, counts = np.unique(first_noised, return_counts=True)
    assert starts.tolist() == [4, 15, 26]
    assert counts.min() > 430


def test_short_spans_are_not_cut() -> None:
    cut = Draw(mix=0, truncate=0.0, keep=0.5, prefix=0, first_span=0, t=0, tokens=np.zeros(99), audio_ar=0, draft=0)
    assert truncated_length(long_sample(10), LAYOUT, cut, 1.0) == len(long_sample(10))
    assert truncated_length(long_sample(11), LAYOUT, cut, 1.0) < len(long_sample(11))


@pytest.mark.parametrize("change", [{"kind": "both"}, {"p_mix": 1.5}, {"normalisation": "batch"}])
def test_impossible_objectives_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=f"objective.{next(iter(change))}"):
        Objective(**change).require_valid("objective")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("text", "text_to_text"),
        ("transcribe", "speech_to_text"),
        ("prompt_only", "speech_to_text"),
        ("speak", "text_to_speech"),
        ("long_speak", "text_to_speech"),
    ],
)
def test_the_task_of_a_sample_is_told_from_its_tokens(kind: str, task: str) -> None:
    sample = random_sample(kind, np.random.default_rng(0), SPEECH_LAYOUT)
    assert TASKS[task_of(sample, SPEECH_LAYOUT)] == task
    heard = Segment(
        np.array([SPEECH_LAYOUT.begin_of_audio, SPEECH_LAYOUT.first_code, SPEECH_LAYOUT.end_of_audio], np.int32), False
    )
    after_speech = Sample.of([heard, *sample.segments])
    assert TASKS[task_of(after_speech, SPEECH_LAYOUT)] == f"speech_to_{task.split('_')[-1]}"
