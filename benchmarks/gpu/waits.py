"""Where the host waits for the device: by line, with the line of ours that led there."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[2]
OURS = str(ROOT / "ttt_dist")
EXPLICIT = [(torch.cuda, "synchronize"), (torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize")]


@contextmanager
def counted_waits(found: Counter[str]) -> Iterator[None]:
    """Count into `found` what waits inside: torch tells of copies, `item`, `nonzero` and the like by a warning that may be
    turned on; what is there to wait, such as torch.cuda.synchronize, it does not tell of, so that is wrapped.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        stack.enter_context(patch.object(warnings, "showwarning", lambda message, *_: _hear(str(message), found)))
        for owner, name in EXPLICIT:
            stack.enter_context(patch.object(owner, name, _counting(getattr(owner, name), found)))
        torch.cuda.set_sync_debug_mode("warn")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        yield


def by_micro_batch(found: Mapping[str, int], num_steps: int, num_micro_batches: int) -> dict[str, Any]:
    """Waits of a micro-batch, and of the rest of a step: how many, and where."""
    per_step = {place: number / num_steps for place, number in found.items()}
    often = {place: number / num_micro_batches for place, number in per_step.items() if number >= num_micro_batches}
    once = {place: number for place, number in per_step.items() if place not in often}
    return {
        "waits_per_micro_batch": sum(often.values()),
        "waits_per_step": sum(once.values()),
        "places_of_micro_batch": often,
        "places_of_step": once,
    }


def _hear(message: str, found: Counter[str]) -> None:
    if "called a synchronizing" in message:
        found[_place(sys._getframe(1))] += 1


def _counting(wait: Any, found: Counter[str]) -> Any:
    def counting(*arguments: Any, **named: Any) -> Any:
        found[_place(sys._getframe(1))] += 1
        return wait(*arguments, **named)

    return counting


def _place(frame: FrameType | None) -> str:
    """The innermost line that is neither this file's nor of `warnings`, and the innermost of ours where that is another."""
    lines = []
    while frame is not None:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    lines = [line for line in lines if line[0] not in (__file__, warnings.__file__)]
    chosen = [*lines[:1], *[line for line in lines if line[0].startswith(OURS)][:1]]
    return " < ".join(dict.fromkeys(f"{'/'.join(Path(path).parts[-2:])}:{number}" for path, number in chosen))
