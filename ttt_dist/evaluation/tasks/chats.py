"""The task `speech_chat`: spoken chats of one or more questions, answered one after the other.

What the answers are worth say the benchmarks' own judges, which read what `submission_formats` writes.
"""

from collections.abc import Sequence

import numpy as np

from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, Scored, accuracy
from ttt_dist.evaluation.tasks.item_adapters import question_text
from ttt_dist.inference.decoder import Request
from ttt_dist.inference.detokenizer import Result
from ttt_dist.manifest.entry import Entry


class Chat:
    """A chat in the middle: what was said so far, and the user's turns that are to come."""

    def __init__(self, item: Item, codes: Sequence[np.ndarray]) -> None:
        self.item = item
        heard = iter(codes)
        turns = [(turn, next(heard) if turn.get("audio") else None) for turn in item.entry["turns"]]
        self._coming = [pair for pair in turns if pair[0]["role"] != "assistant"]
        self.turns: list[Entry] = []
        self.codes: list[np.ndarray] = []
        self.answers: list[Record] = []
        self._go_on()

    @property
    def asks(self) -> bool:
        """Whether a question waits for its answer."""
        return bool(self.turns) and self.turns[-1]["role"] == "user"

    def tell(self, result: Result, wav: str | None) -> None:
        """The answer, which the next question follows; where it is none, the chat is over."""
        said = {"text": result.text, "wav": wav, "codes": len(result.codes), "finish": result.finish}
        self.answers.append({"question": question_text(self.turns[-1])} | said)
        self._add({"role": "assistant", "text": result.text.strip() or None}, result.codes if wav else None)
        if result.text.strip() or wav:
            self._go_on()

    def record(self) -> Record:
        """The answers, and the item as the data gave it."""
        given = {name: value for name, value in self.item.entry.items() if name != "turns"}
        return self.item.record() | {"number": self.item.number, "answers": self.answers, "given": given}

    def _go_on(self) -> None:
        while self._coming and not self.asks:
            self._add(*self._coming.pop(0))

    def _add(self, turn: Entry, codes: np.ndarray | None) -> None:
        self.turns.append(turn if codes is None else turn | {"audio": "given"})
        self.codes += [] if codes is None else [codes]


def speech_chat(context: EvalContext, items: Sequence[Item], item_errors: ItemErrors) -> list[Record]:
    """The model's answers; it is asked each question after its own answers to those before."""
    running = [Chat(item, codes) for item, codes in context.encode_audio(items, item_errors)]
    done = []
    while running:
        done += [chat for chat in running if not chat.asks]
        running = _answer(context, [chat for chat in running if chat.asks], item_errors)
    return [chat.record() for chat in sorted(done, key=lambda chat: chat.item.number)]


def _answer(context: EvalContext, chats: Sequence[Chat], item_errors: ItemErrors) -> list[Chat]:
    """Answer the question of each chat; those that cannot be asked are told and left out."""

    def request(item: Item, chat: Chat) -> tuple[Chat, Request]:
        entry = item.entry | {"turns": chat.turns}
        return chat, context.request(item, entry, chat.codes, turn=len(chat.answers))

    def tell(item: Item, chat: Chat, result: Result) -> Chat:
        wav = None if context.args.text_only else context.synthesize(item, result, turn=len(chat.answers))
        chat.tell(result, wav)
        return chat

    asked = item_errors.each(((chat.item, chat) for chat in chats), request)
    requests = [(item, request) for item, (_, request) in asked]
    results = context.generate(requests, lambda: None, stop_at_last_span=context.args.text_only)
    rows = ((item, chat, result) for (item, (chat, _)), (_, result) in zip(asked, results, strict=True))
    return [chat for _, chat in item_errors.each(rows, tell)]


def score_chats(records: Sequence[Record], normalisers: Normalisers) -> Scored:
    """How many of the answers have a text, and how many a speech."""
    answers = [answer for record in records for answer in record["answers"]]
    figures = {
        "with_text": accuracy([bool(answer["text"].strip()) for answer in answers], "answers"),
        "with_speech": accuracy([answer["wav"] is not None for answer in answers], "answers"),
    }
    return Scored(list(records), figures, {"answers": len(answers)})


def unanswered(record: Record) -> int:
    """How many questions got no text, or no speech."""
    return sum(not answer["text"].strip() or answer["wav"] is None for answer in record["answers"])
