"""Who transcribes speech, by kind: the model itself, published recognisers, a command, or a class of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import Lazy, is_there, load_named, split_spec

FLAG = "--judge"
OWN = "model"


@dataclass(frozen=True)
class JudgeRow:
    """A kind of judges."""

    make: Callable[..., Any]
    """Gives a `Judge` (ttt_dist/evaluation/judge.py) of what follows the colon; told what else it names of `decoder`, `codec`,
    `template`, `settings` and `device`."""
    place: str = ""
    """What follows the colon, for messages."""
    is_folder: bool = False
    """Whether that is a folder, whose files decide what is heard."""


JUDGES = {
    OWN: JudgeRow(Lazy("ttt_dist.evaluation.judge:ModelJudge")),
    "whisper": JudgeRow(Lazy("ttt_dist.evaluation.recognisers:Whisper"), "DIR", is_folder=True),
    "ctc": JudgeRow(Lazy("ttt_dist.evaluation.recognisers:Ctc"), "DIR", is_folder=True),
    "command": JudgeRow(Lazy("ttt_dist.evaluation.judge:CommandJudge"), "'PROGRAM {wav} {text}'"),
}
KINDS = ", ".join(f"{kind}:{row.place}" if row.place else kind for kind, row in JUDGES.items())
HELP = f"{KINDS} or package.module:Class of your own, of a package that is installed or on PYTHONPATH"


def parse(spec: str) -> tuple[str, str]:
    """The kind of a judge, and its folder or command. Raises UserError where it is none of JUDGES and no `package.module:Class`."""
    kind, _, place = spec.partition(":")
    if kind in JUDGES and bool(place) == bool(JUDGES[kind].place):
        return kind, place
    own = None if kind in JUDGES else split_spec(spec)
    if own is None or not is_there(own[0]):
        raise UserError(f"{FLAG} {spec}: is no judge; write {HELP}")
    return own[0], own[1] or ""


def find_judge(kind: str) -> JudgeRow:
    """The row of a kind that `parse` gave. Raises UserError where a class of one's own is not there."""
    return JUDGES.get(kind) or JudgeRow(load_named(kind, FLAG))


def labels(specs: Sequence[str]) -> dict[str, str]:
    """A short name for each judge -> its spec: its kind, with a number where there are several of one kind.

    Raises UserError where one is no judge, or named twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        kind, _ = parse(spec)
        if spec in found.values():
            raise UserError(f"{FLAG} {spec}: is named twice; name each judge once")
        same = sum(parse(other)[0] == kind for other in found.values())
        name = re.sub(r"\W", "_", kind.rpartition(":")[2])
        found[f"{name}_{same + 1}" if same else name] = spec
    return found


def judge_files(specs: Sequence[str]) -> list[Path]:
    """The folders and files that decide what judges hear: those of published recognisers, and what one's own is given."""
    places = [(find_judge(kind), Path(place)) for kind, place in map(parse, specs) if place]
    return [path for row, path in places if row.is_folder or (row not in JUDGES.values() and path.exists())]
