"""One phase in this process: each measurement's figures are on the disk as soon as they are known.

python -m benchmarks.gpu.phase NAME --device cuda --work DIR --figures FILE --seconds 120
"""

import argparse
import gc
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.gpu.phases import PHASES
from benchmarks.gpu.setting import Figures, Measurement, Setting, Skipped

ERROR_LENGTH = 300


def main() -> None:
    """Measure until the phase or its time is at an end; a line of JSON, [name, figures], for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PHASES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="after which no measurement is begun")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    setting = Setting(args.device, args.work)
    module, _, function = PHASES[args.name].measurements.partition(":")
    measurements = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    with args.figures.open("a", encoding="utf8") as file:

        def keep(name: str, figures: Figures) -> None:
            print(name, figures, flush=True)
            file.write(json.dumps([name, figures]) + "\n")
            file.flush()

        try:
            run(measurements(setting), until, keep)
        except Exception as error:  # not of a measurement but of what all of them need
            keep("set-up", failure(error))


def run(measurements: Iterable[Measurement], until: float, keep: Callable[[str, Figures], None]) -> None:
    """All measurements, as far as the time reaches."""
    for name, measure in measurements:
        if time.monotonic() > until:
            keep(name, {"skipped": "no time left"})
            continue
        begin = time.monotonic()
        keep(name, {"error": "not finished"})  # the newest word on a measurement counts
        try:
            figures = measure()
        except Skipped as reason:
            figures = {"skipped": str(reason)}
        except Exception as error:
            figures = failure(error)
        keep(name, figures | {"took_s": time.monotonic() - begin})
        clean_up()


def failure(error: Exception) -> Figures:
    """The error in one line; the whole of it is in the log. What its frames hold of the device's memory is let go."""
    traceback.print_exc()
    traceback.clear_frames(error.__traceback__)
    return {"error": f"{type(error).__name__}: {error}"[:ERROR_LENGTH]}


def clean_up() -> None:
    """Memory and compiled functions of one measurement do not count in the next."""
    if "torch._dynamo" in sys.modules:  # seconds to import
        torch.compiler.reset()  # torch gives up compiling a function after a few variants
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
