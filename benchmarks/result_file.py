"""The head of a dated result file: when, on what, which revision, by which command."""

import argparse
import datetime
import sys
from pathlib import Path

from ttt_dist.telemetry.run_folder import environment


def result_path(value: str) -> Path:
    """Type of an argument that names a result file: refused before the measurement where it could not be written after it."""
    path = Path(value)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{value}: there is no folder {path.parent}; make it, or name another")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{value}: is a folder; name a file")
    return path


def head(title: str, module: str) -> list[str]:
    """Lines of Markdown that a result file begins with; `module` is what was run as `python -m`."""
    about = environment(world_size=1, start_step=0)
    hardware, packages = about["hardware"], about["packages"]
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    cpu = next((row.split(":")[1].strip() for row in cpuinfo if row.startswith("model name")), hardware["machine"])
    return [
        f"# {title}",
        "",
        f"- Date {datetime.date.today()}; {', '.join(hardware['gpus']) or 'no GPU'}; {cpu}, {hardware['cores']} cores, "
        f"{hardware['threads_per_process']} threads, {hardware['memory_bytes'] / 2**30:.0f} GiB; "
        f"Python {about['python']}, torch {packages['torch']}, transformers {packages['transformers']}",
        f"- Revision {about['revision']}",
        f"- Command: `python -m {module} {' '.join(sys.argv[1:])}`",
    ]
