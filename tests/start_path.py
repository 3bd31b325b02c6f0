"""The modules of ours that the start of train.py goes through, from `main` to the first step, as they are called.

    python -m tests.start_path --config CONFIG.yaml run_dir=/tmp/some/run

Printed as JSON: for each module that calls others, which ones, in the order of their first calls. What is called at import
(decorators, tables) and what a function of another package calls in between does not count as called by hand.
"""

import inspect
import json
import sys
from types import FrameType

from ttt_dist import train

OURS = "ttt_dist."


def is_ours(frame: FrameType) -> bool:
    return bool(frame.f_globals.get("__name__", "").startswith(OURS))


def record_calls(calls: dict[str, list[str]]) -> None:
    """From here to the first step, fill `calls`: module -> modules whose functions its functions call."""

    def hear(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not is_ours(frame) or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return  # bodies of modules and classes are no functions
        if frame.f_code.co_name == "train_step":
            sys.setprofile(None)
            return
        caller = frame.f_back
        if caller is not None and is_ours(caller) and caller.f_code.co_flags & inspect.CO_OPTIMIZED:
            there, here = (str(one.f_globals["__name__"]) for one in (caller, frame))
            if here != there and here not in calls.setdefault(there, []):
                calls[there].append(here)

    sys.setprofile(hear)


def main() -> None:
    """Train with the arguments of train.py, and print what its start called."""
    calls: dict[str, list[str]] = {}
    record_calls(calls)
    train.main()
    print(json.dumps(calls, indent=1))


if __name__ == "__main__":
    main()
