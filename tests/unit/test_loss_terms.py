"""A term of the loss that is registered from outside: in the loss, in every gradient, in the sums and in the record."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.distributed.random_packs import LAYOUT, SEQ_LEN, global_batches
from tests.unit.test_records import NOTHING, step, window
from ttt_dist.config.objective import Objective
from ttt_dist.model import cross_entropy, loss
from ttt_dist.model.cross_entropy import VocabularySlice, by_chunks
from ttt_dist.model.loss import LossRows, LossSums, linear_cross_entropy, loss_rows, metric_names
from ttt_dist.sequence import loss_terms
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.loss_terms import LossTerm
from ttt_dist.training import step_metrics
from ttt_dist.training.step import Losses

NUM_PACKS = 4
Z_LOSS, FOCAL = 0.01, 0.3
TERMS = {
    # z-loss (arXiv 2204.02311) keeps the logarithm of the sum of exponentials near 0; there is no gradient at its zero.
    "z": LossTerm("ar", lambda nats, log_sums: log_sums**2, lambda objective: Z_LOSS),
    # Of a function of both, and of the other kind of targets.
    "focal": LossTerm("nar", lambda nats, log_sums: (1 - (-nats).exp()) ** 2 * log_sums, lambda objective: FOCAL),
    # One that an objective leaves out.
    "late": LossTerm("ar", lambda nats, log_sums: nats**2, lambda objective: float(objective.kind == "ar")),
}


@pytest.fixture
def terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terms of this module beside those that are there."""
    for name in list(loss_terms.MORE_TERMS):  # whatever the table has by now
        monkeypatch.delitem(loss_terms.MORE_TERMS, name)
    for name, term in TERMS.items():
        monkeypatch.setitem(loss_terms.MORE_TERMS, name, term)


def batch_of(objective: Objective) -> Batch:
    [packs] = global_batches(1, NUM_PACKS)
    return collate(packs, LAYOUT, objective, 1, [0] * NUM_PACKS, SEQ_LEN)


def leaves(num_rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, 6, generator=random, dtype=torch.float64)
    weight = torch.randn(LAYOUT.padded_vocab_size, 6, generator=random, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def naive(hidden: Tensor, weight: Tensor, rows: LossRows) -> dict[str, Tensor]:
    """Each term from all logits, by autograd."""
    logits = hidden @ weight[: LAYOUT.vocab_size].T
    log_sums = logits.logsumexp(1)
    nats = log_sums - logits.gather(1, rows.targets.unsqueeze(1)).squeeze(1)
    weighted = {
        "ar": nats,
        "nar": nats,
        "z": Z_LOSS * log_sums**2,
        "focal": FOCAL * (1 - (-nats).exp()) ** 2 * log_sums,
    }
    kinds = {"ar": "ar", "nar": "nar", "z": "ar", "focal": "nar"}
    return {name: (values * rows.weights)[rows.kinds[kinds[name]]].sum() for name, values in weighted.items()}  # type: ignore[index]


def ours(hidden: Tensor, weight: Tensor, rows: LossRows) -> LossSums:
    return linear_cross_entropy(hidden, weight, rows, VocabularySlice(0, LAYOUT.vocab_size))


@pytest.fixture(params=["tiles", "chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The CPU's and CUDA's, in pieces that the kinds of targets do not end with."""
    for name, size in (("TILE_ELEMENTS", 200), ("TILE_ROWS", 7), ("CHUNK_ROWS", 7)):
        monkeypatch.setattr(cross_entropy, name, size)
    if request.param == "chunks":
        monkeypatch.setattr(loss, "by_tiles", by_chunks)
    return request.param


def test_loss_and_gradients_have_the_terms(terms: None, way: str) -> None:
    rows = loss_rows(batch_of(Objective(p_mix=0.1)), slice(None))
    assert rows.kinds["ar"].stop % 7 and rows.term_weights == {"z": Z_LOSS, "focal": FOCAL}
    hidden, weight = leaves(len(rows.rows))
    sums, wanted = ours(hidden, weight, rows), naive(hidden, weight, rows)
    for name, value in wanted.items():
        torch.testing.assert_close(sums.terms[name], value.detach())
    assert sums.terms["late"] == 0
    total = torch.stack(list(wanted.values())).sum()
    torch.testing.assert_close(sums.loss, total)
    found = torch.autograd.grad(sums.loss * 0.37, (hidden, weight))
    for mine, theirs in zip(found, torch.autograd.grad(total * 0.37, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_z_loss_of_the_objective(way: str) -> None:
    """The table's own row, as the settings ask for it."""
    assert not any(term.weight(Objective()) for term in loss_terms.MORE_TERMS.values())
    rows = loss_rows(batch_of(Objective(p_mix=0.1, z_loss=Z_LOSS)), slice(None))
    hidden, weight = leaves(len(rows.rows))
    sums, wanted = ours(hidden, weight, rows), naive(hidden, weight, rows)
    del wanted["focal"]
    for name, value in wanted.items():
        torch.testing.assert_close(sums.terms[name], value.detach())
    total = torch.stack(list(wanted.values())).sum()
    found = torch.autograd.grad(sums.loss, (hidden, weight))
    for mine, theirs in zip(found, torch.autograd.grad(total, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_slopes_that_cancel_leave_the_gradient_of_the_target_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus log_sums beside nats: what is left is minus the target's logit, without a softmax to scale."""
    term = LossTerm("ar", lambda nats, log_sums: -log_sums, lambda objective: 1.0)
    monkeypatch.setitem(loss_terms.MORE_TERMS, "logit", term)
    rows = loss_rows(batch_of(Objective(p_mix=0.1)), slice(None))
    hidden, weight = leaves(len(rows.rows))
    found = torch.autograd.grad(ours(hidden, weight, rows).loss, (hidden, weight))
    logits = hidden @ weight[: LAYOUT.vocab_size].T
    ar = rows.kinds["ar"]
    target = logits.gather(1, rows.targets.unsqueeze(1)).squeeze(1)
    values = torch.cat([-target[ar], (logits.logsumexp(1) - target)[ar.stop :]])
    for mine, theirs in zip(found, torch.autograd.grad((values * rows.weights).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_names_decide_what_is_summed_and_recorded(terms: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = loss_rows(batch_of(Objective(kind="ar")), slice(None))
    sums = ours(*leaves(len(rows.rows)), rows)
    named = dict(zip(metric_names(rows.num_groups), sums.metric_sums().tolist(), strict=True))
    assert list(named)[:5] == ["ar", "nar", "z", "focal", "late"] and named["late"] > 0 == named["focal"]
    losses = Losses.of_sums(named, num_loss_units=4.0)
    monkeypatch.setattr(step_metrics, "slowest", lambda own_s: {})  # asks the other ranks
    steps = window()
    steps.add(replace(step(1.0, NOTHING), losses=losses), 0.0, 1.0)
    record = steps.record(0.1)
    assert record["z_loss"] == named["z"] / 4 and record["loss"] == sum(named[name] for name in TERMS | {"ar": 0}) / 4
    assert losses.record("eval_").keys() == {
        f"eval_{name}loss"
        for name in ("", "ar_", "nar_", "z_", "late_")  # focal is 0
    }
    assert Losses({"ar": 1.0, "z": 0.25}).told(digits=2) == "loss 1.25 (ar 1.00, z 0.25)"
