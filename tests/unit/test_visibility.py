"""The mask against the sentence that defines it, token pair by token pair."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.structures import packs, tiny_layout
from ttt_dist.config.objective import Objective
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.visibility import dense_mask, visible_end

LAYOUT = tiny_layout(shuffle_seed=1)
CLEAN = {"p_mix": 1.0, "p_trunc": 0.0, "audio_ar": 0.0}  # nothing is noised, cut or made causal: structure alone


def brute_force(row: list, prompt_audio: str, seq_len: int) -> np.ndarray:
    """same sample AND not padding AND (k <= q OR both in one run of audio-class tokens)."""
    owner: list[tuple[int, int]] = []  # (sample, run of audio tokens or -1) per token
    for number, sample in enumerate(row):
        run = 0
        for i, token in enumerate(sample.ids):
            audio = int(token) in {LAYOUT.mask, LAYOUT.end_of_audio_new, LAYOUT.end_of_audio_span_last} or (
                LAYOUT.first_code <= token < LAYOUT.first_code + LAYOUT.num_codes
            )
            run += not audio
            counts = audio and (prompt_audio == "bidirectional" or bool(sample.is_target[i]))
            owner.append((number, run if counts else -1))
    seen = np.zeros((seq_len, seq_len), dtype=bool)
    for q, (sample_q, run_q) in enumerate(owner):
        for k, (sample_k, run_k) in enumerate(owner):
            seen[q, k] = sample_q == sample_k and (k <= q or (run_q == run_k and run_q >= 0))
    return seen


@settings(max_examples=60)
@given(packs(LAYOUT), st.sampled_from(["bidirectional", "causal"]))
def test_mask_and_its_interval_form(rows: list, prompt_audio: str) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 3
    batch = collate(rows, LAYOUT, Objective(prompt_audio=prompt_audio, **CLEAN), 0, [0] * len(rows), seq_len)
    mask = dense_mask(batch.sample_ids, batch.position_ids, batch.span_ids).numpy()
    for row, pack in enumerate(rows):
        np.testing.assert_array_equal(mask[row], brute_force(pack, prompt_audio, seq_len))
        numbers = batch.span_ids[row][batch.span_ids[row] > 0]
        borders = int((numbers[1:] != numbers[:-1]).sum()) + 1 if len(numbers) else 0
        assert len(numbers.unique()) == borders  # no number is used by two spans of a row
    index = torch.arange(seq_len)
    starts = index - batch.position_ids
    ends = visible_end(batch.sample_ids, batch.span_ids)
    interval = (index >= starts.unsqueeze(-1)) & (index < ends.unsqueeze(-1))
    np.testing.assert_array_equal(interval.numpy(), mask)


@settings(max_examples=30)
@given(packs(LAYOUT))
def test_noise_does_not_move_the_mask(rows: list) -> None:
    """The mask token is audio class: noised and clean inputs have the same spans."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows))
    epochs = [0] * len(rows)
    clean = collate(rows, LAYOUT, Objective(**CLEAN), 0, epochs, seq_len)
    noised = collate(rows, LAYOUT, Objective(p_mix=0.0, p_trunc=0.0, p_prefix=0.0), 0, epochs, seq_len)
    assert torch.equal(clean.span_ids, noised.span_ids)
    assert torch.equal(clean.position_ids, noised.position_ids)


@settings(max_examples=30)
@given(packs(LAYOUT))
def test_baselines(rows: list) -> None:
    """`ar` is plainly causal; in `nar` every response sees itself whole."""
    seq_len = max(1, *(sum(map(len, row)) for row in rows))
    epochs = [0] * len(rows)
    assert not collate(rows, LAYOUT, Objective(kind="ar"), 0, epochs, seq_len).span_ids.any()
    nar = collate(rows, LAYOUT, Objective(kind="nar", prompt_audio="causal"), 0, epochs, seq_len)
    for row, pack in enumerate(rows):
        targets = np.concatenate([sample.is_target for sample in pack] + [np.zeros(0, bool)])
        np.testing.assert_array_equal(nar.span_ids[row, : len(targets)].numpy() > 0, targets)
        assert not nar.ar_weights.any()
