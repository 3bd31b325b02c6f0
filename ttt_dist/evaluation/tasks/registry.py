"""The tasks by name: what each needs of the data, makes of a part of it, and counts. One of one's own is a `Task` in a module."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.evaluation.tasks import item_adapters
from ttt_dist.manifest.entry import Entry
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import Lazy, load_named, split_spec

if TYPE_CHECKING:  # the rows are read before there is anything to do: torch and jiwer take seconds
    from ttt_dist.evaluation.args import EvalArgs
    from ttt_dist.evaluation.context import EvalContext
    from ttt_dist.evaluation.item_errors import ItemErrors
    from ttt_dist.evaluation.items import Item
    from ttt_dist.evaluation.metrics.scores import Normalisers, Record, Scored

FLAG = "--task"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
PLAIN_CELLS = Lazy("ttt_dist.evaluation.cells:plain_cells")
TASK_FLAGS = {"text_only": "--text-only", "quality": "--quality", "ceiling": "--no-ceiling", "meteor": "--meteor"}
"""Of the command line, which go with some tasks only."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. `score` is a function of records alone, so that it may be made anew, and by anyone."""

    name: str
    """Letters, digits, _ and -: files of the results bear it."""
    run: Callable[[EvalContext, Sequence[Item], ItemErrors], list[Record]]
    """The records of a part's items; each begins as `item.record()`."""
    score: Callable[[Sequence[Record], Normalisers], Scored]
    prepare: Callable[[Entry], Entry] = item_adapters.whole_entry
    """A line of the data as `run` takes it. Raises UserError where it lacks something."""
    template: str | None = None
    """Whose prompt it asks by, unless the user names another; None where the user must."""
    speaks: bool = False
    is_judged: bool = False
    """Whether speech is transcribed by judges."""
    takes: tuple[str, ...] = ()
    """Of TASK_FLAGS, `draws` and `estimator`: what else of the command line changes its records."""
    worst: Callable[[Record], Any] = lambda record: 0
    """The larger, the worse a scored record."""
    cells: Callable[[Record, Normalisers], dict[str, str]] = PLAIN_CELLS
    """Name of column -> cell of a scored record in the page: text, or HTML as `markupsafe.Markup`."""
    packs: Callable[[EvalArgs], list[Item | str]] | None = None
    """The items of packed shards, where these may be the data."""
    submissions: Callable[[EvalArgs, Sequence[Record]], list[Path]] | None = None
    """Writes scored records as benchmarks' own judges read them; the paths."""
    version: str = ""
    """To be changed where the same data gives other records: parts of another version are not continued."""


_TASKS = "ttt_dist.evaluation.tasks"
_CELLS = "ttt_dist.evaluation.cells"
_SUBMISSIONS = "ttt_dist.evaluation.submission_formats"
ROWS = (
    Task(
        name="asr",
        prepare=item_adapters.transcript,
        run=Lazy(f"{_TASKS}.transcription:asr"),
        score=Lazy("ttt_dist.evaluation.metrics.breakdown:transcripts"),
        worst=Lazy(f"{_CELLS}:errors"),
        cells=Lazy(f"{_CELLS}:transcript_cells"),
        template="asr",
    ),
    Task(
        name="tts",
        prepare=item_adapters.spoken_text,
        run=Lazy(f"{_TASKS}.transcription:tts"),
        score=Lazy("ttt_dist.evaluation.ears:score_speech"),
        worst=Lazy(f"{_CELLS}:errors"),
        cells=Lazy(f"{_CELLS}:transcript_cells"),
        template="tts",
        speaks=True,
        is_judged=True,
        takes=("quality", "ceiling"),
    ),
    Task(
        name="audio_qa",
        prepare=item_adapters.question,
        run=Lazy(f"{_TASKS}.answers:audio_qa"),
        score=Lazy(f"{_TASKS}.answers:score_answers"),
        worst=Lazy(f"{_TASKS}.answers:wrong_answers"),
        cells=Lazy(f"{_CELLS}:answer_cells"),
        template="audio_chat",
        speaks=True,
        is_judged=True,
        takes=("text_only",),
        submissions=Lazy(f"{_SUBMISSIONS}:alpaca_eval"),
    ),
    Task(
        name="caption",
        prepare=item_adapters.captions,
        run=Lazy(f"{_TASKS}.captioning_classification:caption"),
        score=Lazy(f"{_TASKS}.captioning_classification:score_captions"),
        worst=lambda record: -record["cider_d"],
        cells=Lazy(f"{_CELLS}:caption_cells"),
        template="caption",
        takes=("meteor",),
        submissions=Lazy(f"{_SUBMISSIONS}:aac_metrics"),
    ),
    Task(
        name="classification",
        prepare=item_adapters.labelled,
        run=Lazy(f"{_TASKS}.captioning_classification:classify"),
        score=Lazy(f"{_TASKS}.captioning_classification:score_labels"),
        worst=lambda record: not record["is_right"],
        cells=Lazy(f"{_CELLS}:label_cells"),
        template="classification",
    ),
    Task(
        name="likelihood",
        run=Lazy(f"{_TASKS}.likelihood:likelihood"),
        score=Lazy(f"{_TASKS}.likelihood:score_likelihood"),
        worst=Lazy(f"{_TASKS}.likelihood:audio_nats"),
        cells=Lazy(f"{_CELLS}:likelihood_cells"),
        takes=("draws", "estimator"),
        packs=Lazy(f"{_TASKS}.likelihood:packs_as_items"),
    ),
    Task(
        name="speech_chat",
        prepare=item_adapters.chat,
        run=Lazy(f"{_TASKS}.chats:speech_chat"),
        score=Lazy(f"{_TASKS}.chats:score_chats"),
        worst=Lazy(f"{_TASKS}.chats:unanswered"),
        cells=Lazy(f"{_CELLS}:chat_cells"),
        template="audio_chat",
        speaks=True,
        takes=("text_only",),
        submissions=Lazy(f"{_SUBMISSIONS}:voicebench_and_uro_bench"),
    ),
)
TASKS = {task.name: task for task in ROWS}


def is_task(text: str) -> bool:
    """Whether that may be a task: a name of TASKS, or package.module:NAME."""
    return text in TASKS or split_spec(text) is not None


def find_task(name: str) -> Task:
    """The task of a name of TASKS, or `package.module:NAME`. Raises UserError where that is no `Task`."""
    if name in TASKS:
        return TASKS[name]
    task = load_named(name, FLAG)
    if not isinstance(task, Task):
        raise UserError(
            f"{FLAG} {name}: is no {Task.__module__}.Task; make it one, by Task(name=..., run=..., score=...)"
        )
    if task.name in TASKS or not _NAME.fullmatch(task.name):
        raise UserError(f"{FLAG} {name}: its name is {task.name!r}; choose another of letters, digits, _ and -")
    return task


def tasks_with(flag: str) -> list[str]:
    """The tasks that take something of the command line."""
    return [name for name, task in TASKS.items() if flag in task.takes]
