"""Run the phases one after another, each in a process of its own and within its limit, and keep what each has found.

    bash benchmarks/gpu.sh [--device cpu] [--out DIR] [--only PHASE ...]

DIR (default runs/gpu) gets gpu.json and DATE-gpu.md, both written anew after every phase, and log.txt, all that the phases
printed. The last line is one JSON object. `--device cpu` goes through the same phases with a toy model; what needs CUDA is
told as skipped.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from benchmarks.gpu.phases import PHASES, TOTAL_S
from benchmarks.gpu.report import Outcome, Report
from ttt_dist.util.console import print_json, print_rank0, run_command
from ttt_dist.util.errors import StopRequestedError, UserError

ROOT = Path(__file__).resolve().parents[2]
LEAST_S = 15.0  # a phase that has less is not begun
LAST_START_S = 10.0  # before its limit a phase begins no measurement
STOPPED = "stopped from outside"
SLOW = 5  # times a GPU's limits on CPU


def main() -> None:
    """All phases, or those asked for."""
    args = parse_arguments()
    if args.device == "cuda":
        require_driver()
    signal.signal(signal.SIGTERM, _stop)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.txt").write_text("", encoding="utf8")
    report = Report(args.device, f"bash benchmarks/gpu.sh {shlex.join(sys.argv[1:])}".strip(), revision())
    begin, total_s = time.monotonic(), TOTAL_S * (1 if args.device == "cuda" else SLOW)
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        for name in args.only or PHASES:
            left_s = total_s - (time.monotonic() - begin)
            report.outcomes[name] = run_phase(name, args.device, Path(work), args.out / "log.txt", left_s)
            report.write(args.out)
            print_rank0(f"{time.monotonic() - begin:4.0f} s  {line(name, report.outcomes[name])}")
            if report.outcomes[name].status == STOPPED:
                break
    for what, bar in report.bars.items():
        if bar["value"] is not None:
            print_rank0(f"{'met   ' if bar['met'] else 'MISSED'} {what}: {bar['value']:.4g} ({bar['wanted']})")
    print_json(report.summary())


def run_phase(name: str, device: str, work: Path, log: Path, left_s: float) -> Outcome:
    """One phase within its limit and what is left of all time; its whole family of processes ends with it."""
    limit_s = min(PHASES[name].limit_s * (1 if device == "cuda" else SLOW), left_s)
    if limit_s < LEAST_S:
        return Outcome("no time left", 0.0)
    figures, begin = work / f"{name}.jsonl", time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.phase", name, "--device", device, "--work", str(work)]
    command += ["--figures", str(figures), "--seconds", str(limit_s - LAST_START_S)]
    with log.open("a", encoding="utf8") as printed:
        printed.write(f"\n===== {name}\n")
        printed.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(work), stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit_s)
            said = "ok" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            said = f"killed at its limit of {limit_s:.0f} s"
        except StopRequestedError:
            said = STOPPED
        finally:
            end_family(process)
    return Outcome(said, time.monotonic() - begin, read_figures(figures))


def environment(work: Path) -> dict[str, str]:
    """Our modules can be found, what one phase compiled serves the next, and nothing printed is held back."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton")}
    return {**os.environ, **caches, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def end_family(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a phase: its group, and descendants that made groups of their own."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()


def read_figures(path: Path) -> dict[str, dict[str, Any]]:
    """What a phase has found, by measurement; a line that was cut off is not."""
    found = {}
    for row in path.read_text(encoding="utf8").splitlines() if path.exists() else []:
        try:
            name, figures = json.loads(row)
        except json.JSONDecodeError:
            continue
        found[name] = figures
    return found


def line(name: str, outcome: Outcome) -> str:
    """A phase in one line: what was measured, and what was not and why."""
    parts = []
    for key, figures in outcome.figures.items():
        reason = figures.get("error") or figures.get("skipped")
        kind = "FAILED" if "error" in figures else "skipped"
        parts.append(f"{key} ({kind}: {reason[:80]})" if reason else key)
    return f"{name}: {outcome.status}, {outcome.seconds:.0f} s; {'; '.join(parts)}"[:600]


def require_driver() -> None:
    """Raise UserError where torch would find no GPU, without waiting for its import."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UserError("--device cuda: this machine has no CUDA driver; take --device cpu") from None


def revision() -> str:
    """Of this checkout; where a copy came without .git, what gpu_prepare.sh wrote down."""
    written = ROOT / ".whl" / "revision"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return written.read_text(encoding="utf8").strip() if written.exists() else "unknown"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=PHASES, metavar="PHASE", help=f"of {', '.join(PHASES)}")
    return parser.parse_args()


def _stop(number: int, frame: FrameType | None) -> None:
    """Whoever limits our time gets what is there, and no process of a phase outlives us."""
    raise StopRequestedError(STOPPED)


if __name__ == "__main__":
    run_command(main)
