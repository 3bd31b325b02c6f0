"""The task `likelihood`: what the model gives to text and audio that are there, in nats per token.

What is learnt autoregressively has an exact likelihood. What is learnt by denoising has a bound
(docs/method.md#likelihood): the cross-entropy of the masked tokens over p, whose mean over all noise is an upper bound of the negative
log-likelihood. It is estimated by some draws of noise, masks of an exact count or Bernoulli ones, of the linear noise schedule,
whatever the model was trained with: all have one mean, an exact count strays less from it. The strategies (BANOM, SST, PPM)
are off. A model that learns to write its audio from left to right too has an exact likelihood of audio besides (`audio_ar`).
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ttt_dist.config.objective import Objective
from ttt_dist.data.shards import ShardReader
from ttt_dist.evaluation.args import EvalArgs, is_shards
from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.intervals import confidence_interval, ratio
from ttt_dist.evaluation.metrics.scores import Figure, Normalisers, Record, Scored, ids
from ttt_dist.inference.decoder import Request, num_threads
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.loss import loss_rows
from ttt_dist.model.loss_chunks import CHUNK_ROWS
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.batch import Batch, collate
from ttt_dist.sequence.corruption import NUM_P_BINS
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout

CLASSES = ("text", "audio", "audio_ar")
LOGITS = 1 << 23  # held at a time on the CPU: 32 MB in fp32


def packs_as_items(args: EvalArgs) -> list[Item | str]:
    """The packs of the shards that are the data, as items without an entry."""
    reader = ShardReader(args.data)
    count = len(reader) if args.limit is None else min(args.limit, len(reader))
    return [Item(str(pack), f"{args.data}: pack {pack}", {"pack": pack}, pack + 1) for pack in range(count)]


def likelihood(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """A record for each sample: of the items as their template writes them, or of the packs of shards."""
    rows = list(_samples(context, items, item_errors))
    usable = item_errors.each(rows, lambda item, name, sample: _checked(context, name, sample))

    def measured(row: tuple[Item, tuple[str, Sample]]) -> Record:
        item, (name, sample) = row
        of_sample = measure(context.folder.model, context.folder.layout, context.folder.objective, sample, context.args)
        item_errors.advance(len(items) / len(rows))
        return item.record() | {"id": name} | of_sample

    with ThreadPoolExecutor(num_threads(next(context.folder.model.parameters()).device)) as pool:
        return list(pool.map(measured, usable))


def _samples(
    context: EvalContext, items: Sequence[Item], item_errors: ItemErrors
) -> Iterator[tuple[Item, str, Sample]]:
    """(item, name, sample)."""
    if not is_shards(context.args.data):
        made = item_errors.each(
            context.encode_audio(items, item_errors),
            lambda item, codes: context.template.sample(context.args.template, item.entry, codes),
        )
        yield from ((item, item.id, sample) for item, sample in made)
        return
    reader = ShardReader(context.args.data)
    reader.layout.require_same(context.folder.layout, f"{context.args.data}.json (there), the model (here)")
    for item in items:
        for number, sample in enumerate(reader[item.entry["pack"]]):
            yield item, f"{item.id}/{number}", sample


def _checked(context: EvalContext, name: str, sample: Sample) -> tuple[str, Sample]:
    context.decoder.require(Request(sample.ids))
    return name, sample


def measure(model: Transformer, layout: TokenLayout, objective: Objective, sample: Sample, args: EvalArgs) -> Record:
    """Tokens and nats of each class: one number where it is exact, one per draw of noise where it is bounded.

    `by_p`: cross-entropy of masked audio tokens, without weights, and their number, by equal bins of p.
    """
    plain = replace(
        objective, preset="paper", masking=args.estimator, noise_schedule="linear", audio_ar=0.0,
        mix_unit="sample", normalisation="token", p_prefix=0.0, p_trunc=0.0, p_draft=0.0, ar_weight=1.0, nar_weight=1.0,
    )  # fmt: skip

    def losses(num_draws: int, **changed: Any) -> TargetLosses:
        packs, epochs = [[sample]] * num_draws, list(range(num_draws))
        batch = collate(packs, layout, replace(plain, **changed), args.seed, epochs, len(sample))
        return target_losses(model, layout, batch)

    found: Record = {}
    if objective.kind != "nar":
        clean = losses(1, p_mix=1.0)
        found["text"] = _exact(clean, is_audio=False)
        if objective.kind == "ar":
            found["audio"] = _exact(clean, is_audio=True)
    if objective.kind != "ar":
        noised = losses(args.draws, p_mix=0.0)
        for name in ("text", "audio") if objective.kind == "nar" else ("audio",):
            tokens = int(((layout.is_audio[sample.ids] == (name == "audio")) & sample.is_target).sum())
            found[name] = {"tokens": tokens, **_bound(noised, name == "audio", args)}
        found["by_p"] = by_p(noised)
    if objective.learns_audio_ar:
        found["audio_ar"] = _exact(losses(1, p_mix=1.0, audio_ar=1.0), is_audio=True)
    return found


@dataclass(frozen=True, kw_only=True)
class TargetLosses:
    """The targets of a batch that have a weight, arrays [N]."""

    nats: np.ndarray
    """Cross-entropy, without the weight."""
    weights: np.ndarray
    is_audio: np.ndarray
    bins: np.ndarray
    """Bin of p, 1 to NUM_P_BINS, of masked tokens; 0 of autoregressive targets."""
    rows: np.ndarray
    """Row of the batch."""


def _exact(losses: TargetLosses, is_audio: bool) -> Record:
    chosen = losses.is_audio == is_audio
    return {"is_bound": False, "tokens": int(chosen.sum()), "nats": [round(float(losses.nats[chosen].sum()), 6)]}


def _bound(losses: TargetLosses, is_audio: bool, args: EvalArgs) -> Record:
    """Of rows that are draws of noise."""
    chosen = (losses.bins > 0) & (losses.is_audio == is_audio)
    sums = np.bincount(losses.rows[chosen], (losses.nats * losses.weights)[chosen], minlength=args.draws)
    return {"is_bound": True, "estimator": args.estimator, "nats": sums.round(6).tolist()}


@torch.inference_mode()
def target_losses(model: Transformer, layout: TokenLayout, batch: Batch) -> TargetLosses:
    """The loss of each target, as training's but not summed."""
    batch = batch.to(next(model.parameters()).device)
    plan = attention_plan(batch.sample_ids, batch.span_ids, model.dtype)
    hidden = model.hidden(batch.input_ids.flatten(), batch.position_ids.flatten(), plan)
    rows = loss_rows(batch, slice(None))
    size = CHUNK_ROWS if hidden.is_cuda else max(LOGITS // layout.padded_vocab_size, 1)
    chunks = zip(rows.rows.split(size), rows.targets.split(size), strict=True)
    nats = [F.cross_entropy(model.logits(hidden[where]), targets, reduction="none") for where, targets in chunks]
    found = (torch.cat(nats).double(), rows.weights.double(), rows.targets, rows.bins, rows.rows)
    losses, weights, targets, bins, positions = (tensor.cpu().numpy() for tensor in found)
    return TargetLosses(
        nats=losses,
        weights=weights,
        is_audio=layout.is_audio[targets],
        bins=bins,
        rows=positions // batch.input_ids.shape[-1],
    )


def by_p(losses: TargetLosses) -> list[list[float]]:
    """Sums of the cross-entropy of masked audio tokens and their numbers, by bin of p."""
    bins, nats = losses.bins[losses.is_audio], losses.nats[losses.is_audio]
    sums = np.bincount(bins, nats, minlength=NUM_P_BINS + 1)[1:]
    return [sums.round(6).tolist(), np.bincount(bins, minlength=NUM_P_BINS + 1)[1:].tolist()]


def score_likelihood(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """Nats per token of text and of audio, with the standard error that the noise leaves, and by p."""
    figures: dict[str, Figure] = {}
    details: Record = {}
    for name in CLASSES:
        known = [record for record in records if name in record]
        if known:
            figures[f"{name}_nats_per_token"], details[f"{name}_standard_error"] = _per_token(known, name)
    tables = np.array([record["by_p"] for record in records if "by_p" in record])
    if len(tables):
        details["audio_by_p"] = [
            {
                "p": f"{bin_ / NUM_P_BINS:.1f}-{(bin_ + 1) / NUM_P_BINS:.1f}",
                "nats": _ratio(nats, count),
                "tokens": int(count),
            }
            for bin_, (nats, count) in enumerate(tables.sum(axis=0).T.tolist())
        ]
    return Scored(list(records), figures, details)


def _per_token(records: Sequence[Record], name: str) -> tuple[Figure, float | None]:
    """The figure, and its standard error over the draws of noise: None where it is exact, or there is one draw."""
    tokens = [record[name]["tokens"] for record in records]
    nats = [np.array(record[name]["nats"]) for record in records]
    draws = len(nats[0])
    means = [float(values.mean()) for values in nats]
    value = _ratio(sum(means), sum(tokens))
    by = f"upper bound, {draws} draws of noise" if records[0][name]["is_bound"] else "exact"
    interval = confidence_interval(ratio, ids(records), list(zip(means, tokens, strict=True)))
    error = None
    if draws > 1:
        error = _ratio(math.sqrt(sum(float(values.var(ddof=1)) / draws for values in nats)), sum(tokens))
    return Figure(value, interval, by, len(records)), error


def _ratio(total: float, count: float) -> float | None:
    return round(total / count, 6) if count else None


def audio_nats(record: Record) -> float:
    """Nats per token of a record's audio, or of its text where it has none."""
    found = record.get("audio") or record["text"]
    return float(sum(found["nats"]) / max(found["tokens"], 1))
