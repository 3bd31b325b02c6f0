"""The objective's randomness as pure functions: what is noised, cut and preserved in one sample (docs/method.md#the-objective).

`draw` turns (seed, sample, epoch) into uniform numbers; `corrupt` turns a sample and its draw into inputs, spans, targets
and weights. Nothing else in the project draws for the objective, so a sample meets the same noise in every layout.
"""

from dataclasses import dataclass

import numpy as np

from ttt_dist.config.objective import Objective
from ttt_dist.sequence.noise_schedule import NoiseSchedule, noise_schedule
from ttt_dist.sequence.sample import Sample, runs
from ttt_dist.sequence.tokens import TokenLayout

NUM_P_BINS = 5  # equal bins of p, by which the NAR loss is watched


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Uniform numbers in [0, 1) of one sample and epoch; `tokens` has one per token of the uncut sample."""

    mix: float
    truncate: float
    keep: float
    prefix: float
    first_span: float
    t: float
    """Time of the diffusion: the noise schedule says what it means."""
    tokens: np.ndarray
    audio_ar: float
    draft: float


def draw(sample: Sample, seed: int, epoch: int) -> Draw:
    """The sample's noise: the same for equal (seed, content of the sample, epoch) wherever it is packed."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, sample.key, epoch])))
    # A number that is new comes last: those before it, and with them the noise of older settings, stay what they are.
    numbers = rng.random(8 + len(sample))
    names = ("mix", "truncate", "keep", "prefix", "first_span", "t")
    single = dict(zip(names, numbers[:6].tolist(), strict=True))
    return Draw(**single, tokens=numbers[6:-2], audio_ar=float(numbers[-2]), draft=float(numbers[-1]))


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """One sample as the model meets it; arrays [n] after truncation.

    Position i predicts ar_targets[i] (the next token) with ar_weights[i] and nar_targets[i] (itself, uncorrupted) with
    nar_weights[i]. span_ids count from 1 within the sample; 0 is causal. nar_bins[i] is the bin of p where there is a NAR
    target, else 0. `loss_denominator` is the sample's part of what the loss is divided by.
    """

    input_ids: np.ndarray
    span_ids: np.ndarray
    ar_targets: np.ndarray
    ar_weights: np.ndarray
    nar_targets: np.ndarray
    nar_weights: np.ndarray
    nar_bins: np.ndarray
    loss_denominator: float


def truncated_length(sample: Sample, layout: TokenLayout, draw: Draw, p_trunc: float) -> int:
    """SST: length of the sample after its last response span may have been cut (docs/method.md#sst-banom-ppm).

    Keeps k codes, k uniform in [max(floor(0.3 n), 5), floor(0.9 n)]; spans of n <= 10 codes are left whole, and so is a
    span that a later turn follows.
    """
    response = runs(sample.is_target)
    if draw.truncate >= p_trunc or not response:
        return len(sample)
    start, end = response[-1]
    audio = runs(layout.is_audio[sample.ids[start:end]])
    if end != len(sample) or not audio:
        return len(sample)
    span_start, span_end = start + audio[-1][0], start + audio[-1][1]
    num_codes = len(layout.codes_of(sample.ids[span_start:span_end]))
    if num_codes <= 10:
        return len(sample)
    low, high = max(int(0.3 * num_codes), 5), int(0.9 * num_codes)
    return span_start + low + int(draw.keep * (high - low + 1))


def maskable(audio_spans: list[tuple[int, int]], is_target: np.ndarray, draw: Draw, p_prefix: float) -> np.ndarray:
    """Tokens that may be noised, bool [n]: response audio, less PPM's preserved prefix (docs/method.md#sst-banom-ppm)."""
    flags = np.zeros(len(is_target), dtype=bool)
    response = [(start, end) for start, end in audio_spans if is_target[start]]
    first = int(draw.first_span * len(response)) if draw.prefix < p_prefix else 0
    for start, end in response[first:]:
        flags[start:end] = True
    return flags


def corrupt(
    sample: Sample, layout: TokenLayout, objective: Objective, draw: Draw, mix: bool | None = None
) -> Corrupted:
    """Apply the objective to one sample. `mix` overrides the sample's own BANOM choice (mix_unit: micro_batch)."""
    is_ttt, only_ar = objective.kind == "ttt", objective.kind == "ar"
    # SST comes first: what is cut is neither noised nor a target, and the counts that losses are divided by are those of
    # what is left. The baselines have none of the three strategies.
    length = truncated_length(sample, layout, draw, objective.p_trunc) if is_ttt else len(sample)
    ids, is_target = sample.ids[:length], sample.is_target[:length]
    is_audio = layout.is_audio[ids]
    audio_spans = runs(is_audio)

    if is_ttt:
        only_ar = (draw.mix < objective.p_mix) if mix is None else mix
    if only_ar:
        may_mask = np.zeros(length, dtype=bool)
    else:
        may_mask = maskable(audio_spans, is_target, draw, objective.p_prefix) if is_ttt else is_target
    # Schedules share one expected loss only if each target is weighted by s'(t) / p: `rate` times what would be 1/p.
    schedule = noise_schedule(objective.noise_schedule)
    is_draft = is_ttt and not only_ar and draw.draft < objective.p_draft
    if is_draft:
        (masked, p), rate = mask_drafts(may_mask, audio_spans, draw), 1.0
    else:
        (masked, p), rate = mask(may_mask, draw, objective.mask_rule, schedule), schedule.rate(draw.t)
    # Audio before which nothing is noised may be taught from left to right, as text is.
    audio_is_ar = (only_ar or is_draft) and (not is_ttt or draw.audio_ar < objective.p_audio_ar)
    input_ids = np.where(masked, layout.mask, ids).astype(np.int32)

    # An AR target stands at the position before it, a NAR target at its own: a position may have both, of the same logits.
    next_ids = np.append(ids[1:], 0).astype(np.int32)
    ar = np.append(is_target[1:], False)
    if objective.kind == "nar":
        ar[:] = False
    if not audio_is_ar:
        ar &= ~layout.is_audio[next_ids]
    if not objective.keeps_masked_ar:
        ar &= ~masked  # logits of a masked position are asked for its own token alone, not for the next one too
    ar_weight, nar_weight, loss_denominator = _weights(int(ar.sum()), int(may_mask.sum()), p, rate, objective)
    if is_ttt:
        ar_weight, nar_weight = ar_weight * objective.ar_weight, nar_weight * objective.nar_weight
    return Corrupted(
        input_ids=input_ids,
        span_ids=_span_ids(audio_spans, is_target, objective, ~masked if is_draft else np.full(length, audio_is_ar)),
        ar_targets=np.where(ar, next_ids, 0),
        ar_weights=ar * np.float32(ar_weight),
        nar_targets=np.where(masked, ids, 0),
        nar_weights=masked * np.float32(nar_weight),
        nar_bins=masked * np.int32(p_bin(p)),
        loss_denominator=loss_denominator,
    )


def mask(may_mask: np.ndarray, draw: Draw, rule: str, schedule: NoiseSchedule) -> tuple[np.ndarray, float]:
    """Which of the maskable tokens are masked, bool [n], and p, by which their loss is divided.

    With s = s(t) of the schedule, t uniform in 0..1: `bernoulli` masks each with probability p = s (but for MIN_NOISE), by
    itself. `exact_count` masks, of m maskable tokens, k = 1 + floor(s m), and p = k / m; s is uniform with the linear
    schedule, and so is k in 1..m. For token i and a set S of other masked tokens the first then gives the integral over p of
    p^|S| (1 - p)^(m - 1 - |S|), the second 1 / (m C(m - 1, |S|)): both are |S|! (m - 1 - |S|)! / m!, so the expected loss is
    one. With another schedule s'(t) in the weight makes up for how often s is drawn: its integral over the t of one k is 1/m
    again. `exact_count` has no 1/p without bound, and no sample in which nothing happens to be masked.
    """
    if rule == "bernoulli":
        p = schedule.mask_prob(draw.t)
        return may_mask & (draw.tokens[: len(may_mask)] < p), p
    indices = np.flatnonzero(may_mask)
    if not len(indices):
        return may_mask, 1.0
    num_masked = min(1 + int(schedule.masked_share(draw.t) * len(indices)), len(indices))
    # The k tokens of the smallest numbers: any set of k is as likely as any other, and a larger k adds to the set.
    masked = np.zeros_like(may_mask)
    masked[indices[np.argsort(draw.tokens[indices], kind="stable")[:num_masked]]] = True
    return masked, num_masked / len(indices)


def mask_drafts(may_mask: np.ndarray, audio_spans: list[tuple[int, int]], draw: Draw) -> tuple[np.ndarray, float]:
    """`mask` of drafts: of each maskable span all tokens from a place on that is drawn uniformly, by the first one's number."""
    masked = np.zeros_like(may_mask)
    for start, end in audio_spans:
        if may_mask[start]:
            masked[start + int(draw.tokens[start] * (end - start)) : end] = True
    return masked, float(masked.sum() / may_mask.sum()) if masked.any() else 1.0


def p_bin(p: float) -> int:
    """Which of the equal bins of p this is, 1 to NUM_P_BINS."""
    return min(int(p * NUM_P_BINS), NUM_P_BINS - 1) + 1


def _span_ids(
    audio_spans: list[tuple[int, int]], is_target: np.ndarray, objective: Objective, is_causal: np.ndarray
) -> np.ndarray:
    """Bidirectional spans of the sample, int32 [n]: none for `ar`, whole responses for `nar`, audio spans for `ttt`.

    Of the response's audio what `is_causal` [n] says is left out: all, or the first part of a span.
    """
    span_ids = np.zeros(len(is_target), dtype=np.int32)
    if objective.kind == "ar":
        return span_ids
    chosen = []
    for start, end in audio_spans:
        if not is_target[start]:
            first = start if objective.prompt_audio == "bidirectional" else end
        else:
            first = start + int(is_causal[start:end].sum()) if objective.kind == "ttt" else end
        if first < end:
            chosen.append((first, end))
    if objective.kind == "nar":
        chosen += runs(is_target)
    for number, (start, end) in enumerate(chosen, start=1):
        span_ids[start:end] = number
    return span_ids


def _weights(num_ar: int, num_maskable: int, p: float, rate: float, objective: Objective) -> tuple[float, float, float]:
    """Weight of one AR and one NAR target, and the sample's part of what the loss is divided by.

    docs/method.md#weights-and-normalisation
    """
    if objective.normalisation == "token":
        return 1.0, rate / p, float(num_ar + num_maskable)
    return 1.0 / max(num_ar, 1), rate / max(num_maskable, 1) / p, 1.0
