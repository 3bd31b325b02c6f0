"""Chunked cross-entropy over rows that count, against full logits and autograd."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.structures import packs, tiny_layout
from ttt_dist.config.objective import Objective
from ttt_dist.model import cross_entropy, loss
from ttt_dist.model.cross_entropy import VocabularySlice, by_chunks, by_tiles
from ttt_dist.model.loss import LossRows, linear_cross_entropy, loss_rows, metric_names
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.corruption import NUM_P_BINS

LAYOUT = tiny_layout()
NUM_TOKENS, NUM_ROWS = LAYOUT.vocab_size, LAYOUT.padded_vocab_size
VOCABULARY = VocabularySlice(0, NUM_TOKENS)
PART_ROWS = 7
NUM_GROUPS = 8
Entropy = Callable[..., tuple[Tensor, Tensor, Tensor]]


def naive(hidden: Tensor, weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both weighted sums from the logits of every position, and the NAR cross-entropies by bin of p with their number."""
    logits = F.linear(hidden, weight)
    logits[..., NUM_TOKENS:] = float("-inf")
    log_probs = logits.log_softmax(-1)
    ar, nar = (
        -(weights * log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).sum()
        for targets, weights in ((batch.ar_targets, batch.ar_weights), (batch.nar_targets, batch.nar_weights))
    )
    by_p = torch.zeros(2, NUM_P_BINS, dtype=torch.float64)
    for row, place in batch.nar_weights.nonzero().tolist():
        bin_of = int(batch.nar_bins[row, place]) - 1
        by_p[0, bin_of] -= log_probs[row, place, batch.nar_targets[row, place]].detach()
        by_p[1, bin_of] += 1
    return ar + nar, ar, nar, by_p


@settings(max_examples=40)
@given(
    packs(LAYOUT), st.sampled_from(["recommended", "released"]), st.integers(0, 3), st.sampled_from([1, 200, 1 << 20])
)
def test_loss_and_gradients_equal_those_of_full_logits(rows: list, preset: str, seed: int, chunk: int) -> None:
    seq_len = max(1, *(sum(map(len, row)) for row in rows)) + 2
    batch = collate(rows, LAYOUT, Objective(preset=preset, p_mix=0.1), seed, [0] * len(rows), seq_len)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*batch.input_ids.shape, 6, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(NUM_ROWS, 6, dtype=torch.float64, generator=generator).requires_grad_()
    chosen = loss_rows(batch, slice(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "TILE_ELEMENTS", chunk)
        patch.setattr(cross_entropy, "TILE_ROWS", 7)
        sums = linear_cross_entropy(hidden.flatten(0, 1).index_select(0, chosen.rows), weight, chosen, VOCABULARY)
    reference = naive(hidden, weight, batch)
    found = (sums.loss, sums.terms["ar"], sums.terms["nar"], sums.nar_by_p)
    for mine, theirs in zip(found, reference, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-10, atol=1e-12)
    mine_grads = torch.autograd.grad(sums.loss * 0.37, (hidden, weight))
    for mine, theirs in zip(mine_grads, torch.autograd.grad(reference[0] * 0.37, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert not mine_grads[1][NUM_TOKENS:].any()
    named = dict(zip(metric_names(batch.num_groups), sums.metric_sums().tolist(), strict=True))
    assert (named["ar"], named["nar"]) == (float(sums.terms["ar"]), float(sums.terms["nar"]))
    assert named["nar_tokens_p0.2-0.4"] == sums.nar_by_p[1, 1]
    for group in range(batch.num_groups):
        of_group = batch.group_ids == group
        apart = replace(batch, ar_weights=batch.ar_weights * of_group, nar_weights=batch.nar_weights * of_group)
        _, ar, nar, _ = naive(hidden, weight, apart)
        assert (named[f"ar_{group}"], named[f"nar_{group}"]) == pytest.approx((float(ar), float(nar)), rel=1e-10)


def random_rows(num_rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, LossRows]:
    generator = torch.Generator().manual_seed(num_rows)
    targets = torch.randint(0, NUM_TOKENS, (num_rows,), generator=generator)
    num_ar = num_rows // 2
    bins = torch.cat([torch.zeros(num_ar, dtype=torch.int64), torch.randint(1, NUM_P_BINS + 1, (num_rows - num_ar,))])
    rows = LossRows(
        rows=torch.arange(num_rows), targets=targets, weights=torch.rand(num_rows, generator=generator), bins=bins,
        groups=torch.randint(0, NUM_GROUPS, (num_rows,), generator=generator), num_groups=NUM_GROUPS,
        kinds={"ar": slice(0, num_ar), "nar": slice(num_ar, num_rows)}, term_weights={},
    )  # fmt: skip
    hidden = torch.randn(num_rows, 5, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randn(NUM_ROWS, 5, generator=generator).to(dtype).requires_grad_(), rows


def test_gradcheck() -> None:
    hidden, weight, rows = random_rows(7)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, rows, VOCABULARY).loss, (hidden, weight))


def test_no_rows_give_zero_loss_and_zero_gradients() -> None:
    hidden, weight, rows = random_rows(0)
    sums = linear_cross_entropy(hidden, weight, rows, VOCABULARY)
    sums.loss.backward()
    assert sums.loss.item() == sums.metric_sums().abs().sum() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_bf16_weights_meet_an_fp32_softmax() -> None:
    """The loss of bf16 logits is computed in fp32: it equals the fp32 cross-entropy of those very logits."""
    hidden, weight, rows = random_rows(64, torch.bfloat16)
    sums = linear_cross_entropy(hidden, weight, rows, VOCABULARY)
    logits = F.linear(hidden, weight[:NUM_TOKENS]).float()
    expected = (F.cross_entropy(logits, rows.targets, reduction="none") * rows.weights).sum()
    assert sums.loss.dtype == torch.float32
    torch.testing.assert_close(sums.loss, expected, rtol=1e-6, atol=0)


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, rows = random_rows(3)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, rows, VOCABULARY).loss.requires_grad


@pytest.mark.parametrize("entropy", [cross_entropy.by_tiles, cross_entropy.by_chunks])
def test_a_frozen_weight_has_no_gradient_and_costs_none(entropy: Entropy, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, rows = random_rows(7)
    monkeypatch.setattr(loss, "by_tiles", entropy)
    (expected,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, rows, VOCABULARY).loss, hidden)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, rows, VOCABULARY).loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None and torch.equal(hidden.grad, expected)


@pytest.mark.parametrize("target", [-1, NUM_TOKENS])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    hidden, weight, rows = random_rows(3)
    rows.targets[1] = target
    with pytest.raises(ValueError, match=f"0..{NUM_TOKENS - 1}"):
        linear_cross_entropy(hidden, weight, rows, VOCABULARY)


def putting(values: Sequence[Tensor]) -> Callable[[Tensor], object]:
    """A reduction over slices whose results, one for each part of the rows, are known."""
    left = iter(values)
    return lambda tensor: tensor.copy_(next(left))


def sliced(entropy: Entropy, hidden: Tensor, weight: Tensor, rows: LossRows, first: int) -> list[Tensor]:
    """Loss, entropies and both gradients of `entropy` on the rows of `weight` from `first` on, or up to it, together.

    What each slice lacks of the other's maxima and sums comes from the logits of all.
    """
    logits = (hidden.detach() @ weight.detach()[:NUM_TOKENS].T).to(torch.promote_types(hidden.dtype, torch.float32))
    largest = logits.amax(1)
    target_logit = logits.gather(1, rows.targets.unsqueeze(1)).squeeze(1)
    total = (logits - largest.unsqueeze(1)).exp().sum(1)

    sums = torch.stack([target_logit if entropy is by_tiles else target_logit - largest, total])
    grads: list[Tensor] = []
    for start, part in ((0, weight[:first]), (first, weight[first:])):
        vocabulary = VocabularySlice(
            start, NUM_TOKENS, putting(largest.split(PART_ROWS)), putting(sums.split(PART_ROWS, dim=1))
        )
        loss, losses, _ = entropy(hidden, part, rows.targets, rows, vocabulary)
        grads += torch.autograd.grad(loss * 0.37, (hidden, weight))
    return [loss, losses, grads[0] + grads[2], grads[1] + grads[3]]


@pytest.mark.parametrize("entropy", [by_tiles, by_chunks])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 3, NUM_TOKENS // 2, NUM_TOKENS])
def test_both_ways_over_slices_equal_full_logits(
    entropy: Entropy, dtype: torch.dtype, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("TILE_ELEMENTS", 200), ("TILE_ROWS", PART_ROWS), ("CHUNK_ROWS", PART_ROWS)):
        monkeypatch.setattr(cross_entropy, name, size)
    hidden, weight, rows = random_rows(23, dtype)
    found = sliced(entropy, hidden, weight, rows, first)
    exact_hidden, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    losses = F.cross_entropy(exact_hidden @ exact_weight[:NUM_TOKENS].T, rows.targets, reduction="none")
    loss = (losses * rows.weights).sum()
    expected = [loss, losses, *torch.autograd.grad(loss * 0.37, (exact_hidden, exact_weight))]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (5e-2, 5e-2)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=rtol, atol=atol)
