"""The diary of a run: starts, stops, faults, checkpoints, skipped steps, one JSON line each in RUN/events.jsonl.

Unlike metrics.jsonl it is never shortened: steps that are done again after a fault were done twice, and the diary says so.
Only rank 0 writes it.
"""

import datetime
import json
from pathlib import Path
from typing import Any, Literal, get_args

from ttt_dist.telemetry.best_effort import BestEffort
from ttt_dist.telemetry.json_lines import Record, append_line, is_step, read_lines, warn_of_damage

EVENTS = "events.jsonl"

EventKind = Literal[
    "start",
    "compiled",
    "stage",
    "stop",
    "skipped_step",
    "data_skipped",
    "checkpoint",
    "local_save",
    "save_failed",
    "fault",
    "finish",
]
"""What can happen: the process starts or goes on; its first step has compiled the blocks; a stage of the objective begins;
it ends as asked; a step is not applied; a save; one to the hosts' own disks; one that came to nothing while the run goes on;
what ended the run; its end."""


class Events:
    """Appends to `run_dir`/events.jsonl. A disk that takes nothing is told once, and ends nothing."""

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / EVENTS
        self._attempt = BestEffort()

    def log(self, event: EventKind, step: int, /, **fields: Any) -> None:
        """Write one event at once; `step` counts the updates done, `fields` are values that JSON can hold."""
        assert event in get_args(EventKind), event
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "step": step, "event": event, **fields})
        with self._attempt(self.path):
            append_line(self.path, line)


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """The events of a run in order; none where it has no diary. Warns of damaged lines, which are left out."""
    path = Path(run_dir) / EVENTS
    lines = list(read_lines(path, _is_event))
    warn_of_damage(path, lines)
    return [line.record for line in lines if line.record is not None]


def _is_event(record: Record) -> bool:
    return (
        is_step(record.get("step"))
        and isinstance(record.get("event"), str)
        and isinstance(record.get("time", 0), str | None)
        and isinstance(record.get("seconds", 0.0), int | float)
    )


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
