"""The tasks by name: what each needs of the data, makes of a part of it, and counts. How they are asked for: plan.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ttt_dist.evaluation.args import FORMS
from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.ears import score_speech
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, Scored, error_rates
from ttt_dist.evaluation.tasks import item_adapters
from ttt_dist.evaluation.tasks.answers import audio_qa, score_answers
from ttt_dist.evaluation.tasks.captioning_classification import caption, classify, score_captions, score_labels
from ttt_dist.evaluation.tasks.chats import score_chats, speech_chat
from ttt_dist.evaluation.tasks.likelihood import likelihood, score_likelihood
from ttt_dist.evaluation.tasks.transcription import asr, tts
from ttt_dist.manifest.entry import Entry


@dataclass(frozen=True)
class Task:
    """One task. `score` is a function of records alone, so that it may be made anew, and by anyone."""

    prepare: Callable[[Entry], Entry]
    run: Callable[[EvalContext, Sequence[Item], ItemErrors], list[Record]]
    score: Callable[[Sequence[Record], Normalisers], Scored]
    worst: Callable[[Record], Any]
    """The larger, the worse a scored record."""


def _errors(record: Record) -> float:
    words = record["words"]
    edits = words["substitutions"] + words["deletions"] + words["insertions"]
    return edits / max(edits - words["insertions"] + words["hits"], 1)


def _wrong_answers(record: Record) -> int:
    return sum(record.get(name) is False for name in ("text_is_right", "speech_is_right"))


def _unanswered(record: Record) -> int:
    return sum(not answer["text"].strip() or answer["wav"] is None for answer in record["answers"])


def _audio_nats(record: Record) -> float:
    found = record.get("audio") or record["text"]
    return sum(found["nats"]) / max(found["tokens"], 1)


TASKS = {
    "asr": Task(item_adapters.transcript, asr, error_rates, _errors),
    "tts": Task(item_adapters.spoken_text, tts, score_speech, _errors),
    "audio_qa": Task(item_adapters.question, audio_qa, score_answers, _wrong_answers),
    "caption": Task(item_adapters.captions, caption, score_captions, lambda record: -record["cider_d"]),
    "classification": Task(item_adapters.labelled, classify, score_labels, lambda record: not record["is_right"]),
    "likelihood": Task(item_adapters.whole_sample, likelihood, score_likelihood, _audio_nats),
    "speech_chat": Task(item_adapters.chat, speech_chat, score_chats, _unanswered),
}
assert TASKS.keys() == FORMS.keys()
