"""An evaluation as a job of parts: so many items of the data each, shared out, kept when finished, put together at the end.

OUT/parts/TASK/part-00000.jsonl holds a part's records, .json what it was made from, its counts and problems; the part is
complete where that is. Whoever finds all parts complete scores their records and writes the results.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ttt_dist.data.metadata import with_suffix
from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.context import EvalContext
from ttt_dist.evaluation.item_errors import ItemErrors
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.scores import Record, wavs
from ttt_dist.jobs.parts import describe_file, has_files, part_prefix, read_part, write_part
from ttt_dist.jobs.runner import Outcome, PartJob, ProgressCallback
from ttt_dist.util.atomic_files import atomic_write, remove_leftovers
from ttt_dist.util.errors import UserError

AGAIN = "evaluate again"


@dataclass
class EvaluationJob(PartJob):
    """The parts of one task on one data file."""

    args: EvalArgs
    lines: list[Item | str]
    """Items, and messages about lines that are none."""
    made_from: dict[str, Any]
    """The fingerprint of `args`."""
    retry: bool = False
    """Make parts again in which something could not be used."""
    label = "evaluating"
    unit = "item"

    @property
    def num_parts(self) -> int:
        return -(-len(self.lines) // self.args.part_size)

    def prefix(self, number: int) -> Path:
        return part_prefix(self.args.parts, number)

    def amount(self, number: int) -> float:
        return len(self._lines_of(number))

    def open(self) -> None:
        """Load the model and all else, where there is something left to do."""
        if any(self.finished(number) is None for number in range(self.num_parts)):
            _ = self.context

    @cached_property
    def context(self) -> EvalContext:
        task, is_silent = self.args.row, self.args.text_only
        return EvalContext.open(self.args, task.speaks and not is_silent, task.is_judged and not is_silent)

    def require_own_parts(self) -> None:
        """Raise UserError where a part that lies there was made from other things, naming the first difference."""
        for path in sorted(self.args.parts.glob("part-*.json")):
            part = read_part(path.with_suffix(""), AGAIN) or {}
            theirs = part.get("made_from", {})
            for key, mine in self.made_from.items():
                if theirs.get(key) != mine:
                    raise UserError(
                        f"{path}: made with another {key} ({_short(theirs.get(key))}, now {_short(mine)}); "
                        f"choose another --out, or remove {self.args.parts}"
                    )

    def finished(self, number: int) -> Outcome | None:
        part = read_part(self.prefix(number), AGAIN)
        if part is None or not self._is_whole(number, part) or (self.retry and part["problems"]):
            return None
        return Outcome(part["counts"], part["problems"])

    def make(self, number: int, tick: ProgressCallback) -> Outcome:
        """Write the part."""
        lines = self._lines_of(number)
        items = [line for line in lines if isinstance(line, Item)]
        item_errors = ItemErrors(tick)
        records = self.args.row.run(self.context, items, item_errors) if items else []
        item_errors.advance(max(len(lines) - item_errors.num_done, 0))  # those that could not be used
        problems = [line for line in lines if isinstance(line, str)] + item_errors.problems
        path = with_suffix(self.prefix(number), ".jsonl")
        remove_leftovers(path, with_suffix(self.prefix(number), ".json"))
        with_suffix(self.prefix(number), ".json").unlink(missing_ok=True)
        write_jsonl(path, records)
        counts = {"records": len(records)}
        made = {"made_from": self.made_from, "part": number, "parts": self.num_parts, "judges": self._judge_names}
        written = {
            "files": {path.name: describe_file(path)},
            "wavs": [name for record in records for name in wavs(record)],
        }
        write_part(self.prefix(number), made | {"counts": counts, "problems": problems} | written)
        return Outcome(dict(counts), problems)

    def _is_whole(self, number: int, part: dict[str, Any]) -> bool:
        """Whether the records and the speech of a part are still there."""
        spoken = all((self.args.out / name).is_file() for name in part["wavs"])
        return spoken and has_files(self.prefix(number), part)

    @property
    def _judge_names(self) -> dict[str, str]:
        return {label: judge.name for label, judge in self.context.judges.items()}

    def _lines_of(self, number: int) -> list[Item | str]:
        return self.lines[number * self.args.part_size : (number + 1) * self.args.part_size]

    def collect(self) -> "Collection | None":
        """What all parts hold, in order; None where one is still to be made."""
        found = Collection([], [], {})
        for number in range(self.num_parts):
            part = read_part(self.prefix(number), AGAIN)
            if part is None or not self._is_whole(number, part):
                return None
            text = with_suffix(self.prefix(number), ".jsonl").read_text(encoding="utf8")
            found.records += [json.loads(line) for line in text.split("\n") if line]
            found.problems += part["problems"]
            found.judges |= part["judges"]
        return found


@dataclass
class Collection:
    """The records of all parts."""

    records: list[Record]
    problems: list[str]
    judges: dict[str, str]
    """By label, the names of those who transcribed speech."""


def write_jsonl(path: Path, records: list[Record]) -> None:
    """One record per line; the file appears whole."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
