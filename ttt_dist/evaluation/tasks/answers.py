"""The task `audio_qa`: answers to spoken or written questions, right where they contain one of the accepted answers."""

from collections.abc import Sequence

from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Figure, Normalisers, Record, Scored, accuracy
from ttt_dist.evaluation.metrics.text_scores import contains_reference
from ttt_dist.evaluation.tasks.item_adapters import question_text


def audio_qa(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """The answer to each question, as text and as the judges hear it."""
    requests = item_errors.each(
        context.encode_audio(items, item_errors), lambda item, codes: context.request(item, item.entry, codes)
    )
    if context.args.text_only:
        results = context.generate(requests, item_errors.done(1.0), stop_at_last_span=True)
        return [_asked(item) | {"text": result.text, "finish": result.finish} for item, result in results]
    said = context.synthesize_and_transcribe(
        context.generate(requests, item_errors.done(0.5)), item_errors, item_errors.done(0.5)
    )
    return [
        _asked(item) | {"text": speech.result.text, "heard": speech.first, "heard_by": speech.heard} | speech.record()
        for item, speech in said
    ]


def _asked(item: Item) -> Record:
    texts = [str(turn["text"]) for turn in item.entry["turns"] if turn["role"] == "user" and turn.get("text")]
    known = {"question": question_text(item.entry) or " ".join(texts), "answers": item.entry["answers"]}
    return item.record() | known | {name: item.entry[name] for name in ("dataset",) if name in item.entry}


def score_answers(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """Reference-contained accuracy of the text and of the speech, over the questions with accepted answers.

    `speech` is as the first judge hears it, `speech_LABEL` as another one.
    """
    scored = [record | _is_right(record, normalisers) for record in records]
    figures: dict[str, Figure] = {}
    others = [f"speech_{label}" for record in records[:1] for label in list(record.get("heard_by", {}))[1:]]
    for name in ("text", "speech", *others):
        known = [record for record in scored if f"{name}_is_right" in record]
        if known:
            rights = [record[f"{name}_is_right"] for record in known]
            figures[f"{name}_accuracy"] = accuracy(rights, normalisers.names(known))
    return Scored(scored, figures, {"without_answers": sum(not record["answers"] for record in records)})


def _is_right(record: Record, normalisers: Normalisers) -> Record:
    given = {"text_is_right": record.get("text"), "speech_is_right": record.get("heard")}
    others = list(record.get("heard_by", {}).items())[1:]
    given |= {f"speech_{label}_is_right": text for label, text in others}
    return {
        name: contains_reference(answer, record["answers"], normalisers.of(record))
        for name, answer in given.items()
        if record["answers"] and answer is not None
    }


def wrong_answers(record: Record) -> int:
    """In how many ways a scored record is wrong: the text, the speech."""
    return sum(record.get(name) is False for name in ("text_is_right", "speech_is_right"))
