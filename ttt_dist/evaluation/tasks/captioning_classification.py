"""Tasks on sounds: `caption` describes them, `classification` names their class."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.intervals import confidence_interval
from ttt_dist.evaluation.metrics.meteor import BY as METEOR_BY
from ttt_dist.evaluation.metrics.meteor import meteor
from ttt_dist.evaluation.metrics.scores import Figure, Normalisers, Record, Scored, accuracy, ids, mean
from ttt_dist.evaluation.metrics.text_scores import (
    bleu,
    bleu_counts,
    bleu_length,
    bleu_name,
    bleu_order,
    cider_d,
    class_values,
    classification,
    find_label,
    macro_f1,
    rouge_l,
)
from ttt_dist.evaluation.tasks.transcription import GREEDY_TEXT


def caption(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """What the model writes of each sound, greedy."""
    return [
        item.record() | {"captions": item.entry["captions"]} | said | _matches(context, item, said["hypothesis"])
        for item, said in _say(context, items, item_errors)
    ]


def _matches(context: EvalContext, item: Item, hypothesis: str) -> Record:
    return {"meteor_stats": context.meteor.stats(hypothesis, item.entry["captions"])} if context.meteor else {}


def classify(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """The class that the model names for each sound, greedy."""
    return [item.record() | {"label": item.entry["label"]} | said for item, said in _say(context, items, item_errors)]


def _say(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[tuple[Item, Record]]:
    requests = item_errors.each(
        context.encode_audio(items, item_errors), lambda item, codes: context.request(item, item.entry, codes)
    )
    results = context.generate(requests, item_errors.done(1.0), **GREEDY_TEXT)
    return [(item, {"hypothesis": result.text, "finish": result.finish}) for item, result in results]


def score_captions(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """BLEU, ROUGE-L, CIDEr-D, and METEOR where it was asked for, of `hypothesis` against `captions`."""
    pairs = [(record["hypothesis"], record["captions"]) for record in records]
    norms = [normalisers.of(record) for record in records]
    rouge = [round(rouge_l(*pair, norm), 6) for pair, norm in zip(pairs, norms, strict=True)]
    cider = [round(value, 6) for value in cider_d([hyp for hyp, _ in pairs], [refs for _, refs in pairs], norms)]
    by = normalisers.names(records)
    figures = {
        "bleu": _bleu(records),
        "rouge_l": mean(records, rouge, by),
        "cider_d": mean(records, cider, by),
        **_meteor(records),
    }
    own = [{"rouge_l": one, "cider_d": other} for one, other in zip(rouge, cider, strict=True)]
    return Scored([record | scores for record, scores in zip(records, own, strict=True)], figures)


def _meteor(records: Sequence[Record]) -> dict[str, Figure]:
    """Of records that have its statistics."""
    stats = [record["meteor_stats"] for record in records if "meteor_stats" in record]
    if not stats:
        return {}
    value = float(meteor(np.array(stats).sum(axis=0)[None])[0])
    return {"meteor": Figure(value, confidence_interval(meteor, ids(records), stats), METEOR_BY, len(stats))}


def _bleu(records: Sequence[Record]) -> Figure:
    wanted = [(record["captions"], record.get("lang")) for record in records]
    order = bleu_order(max((bleu_length(*one) for one in wanted), default=0))
    by = " + ".join(sorted({bleu_name(lang, captions, order) for captions, lang in wanted}))
    if not records:
        return Figure(None, None, by, 0)
    counts = [bleu_counts(record["hypothesis"], *one) for record, one in zip(records, wanted, strict=True)]
    score = partial(bleu, order=order)
    value = float(score(np.array(counts).sum(axis=0)[None])[0])
    return Figure(value, confidence_interval(score, ids(records), counts), by, len(records))


def score_labels(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """Accuracy and macro F1 over the labels that occur in the data; any other answer is wrong."""
    labels = sorted({record["label"] for record in records})
    given = [find_label(record["hypothesis"], labels, normalisers.of(record)) for record in records]
    scored = [
        record | {"given": label, "is_right": label == record["label"]}
        for record, label in zip(records, given, strict=True)
    ]
    by = normalisers.names(records)
    if not records:
        return Scored(scored, {"accuracy": accuracy([], by), "macro_f1": Figure(None, None, by, 0)})
    found = classification([record["label"] for record in records], given, labels)
    values = [class_values(record["label"], label, labels) for record, label in zip(records, given, strict=True)]
    figures = {
        "accuracy": accuracy([record["is_right"] for record in scored], by),
        "macro_f1": Figure(found["macro_f1"], confidence_interval(macro_f1, ids(records), values), by, len(records)),
    }
    return Scored(scored, figures, {name: found[name] for name in ("outside_labels", "classes")})
