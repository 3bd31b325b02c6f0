"""The diary of a run: starts, stops, faults, checkpoints, skipped steps, one JSON line each in RUN/events.jsonl.

Unlike metrics.jsonl it is never shortened: steps that are done again after a fault were done twice, and the diary says so.
Only rank 0 writes it.
"""

import datetime
import json
from pathlib import Path
from typing import Any, Literal, get_args

EVENTS = "events.jsonl"

EventKind = Literal["start", "compiled", "stage", "stop", "skipped_step", "checkpoint", "fault", "finish"]
"""What can happen: the process starts or goes on; its first step has compiled the blocks; a stage of the objective begins;
it ends as asked; a step is not applied; a save; what went wrong; the end."""


class Events:
    """Appends to `run_dir`/events.jsonl."""

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / EVENTS

    def log(self, event: EventKind, step: int, /, **fields: Any) -> None:
        """Write one event at once; `step` counts the updates done, `fields` are values that JSON can hold.

        The file is opened for each line: events are rare, and a process that is about to be killed has nothing to close.
        """
        assert event in get_args(EventKind), event
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "step": step, "event": event, **fields})
        with self.path.open("a+b") as file:
            # A line cut short by a full disk or a crash must not swallow this one.
            whole = file.tell() == 0 or _last_byte(file) == b"\n"
            file.write((line if whole else "\n" + line).encode() + b"\n")


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of a run in order; none where it has no diary. A line cut short by a crash is left out."""
    path = Path(run_dir) / EVENTS
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and {"time", "step", "event"} <= event.keys():
            events.append(event)
    return events


def with_silent_ends(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events with a fault put in before each start whose predecessor ended without a word: killed, or its machine lost.

    Its step is that of the last event before, its time unknown.
    """
    told: list[dict[str, Any]] = []
    for event in events:
        is_running = bool(told) and told[-1]["event"] not in ("stop", "fault", "finish")
        if event["event"] == "start" and is_running:
            told.append({"time": None, "step": told[-1]["step"], "event": "fault", "reason": "ended without a word"})
        told.append(event)
    return told


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    return file.read(1)
