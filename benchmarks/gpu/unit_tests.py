"""The unit tests that are skipped where there is no GPU, each file in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu.setting import Figures, Measurement, Setting

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "unit"
NEEDS_GPU = "not torch.cuda.is_available()"  # how a file's skipif reads


def measurements(setting: Setting) -> Iterator[Measurement]:
    """By file; without a GPU one of them will do."""
    names = [path.stem for path in sorted(FOLDER.glob("test_*.py")) if NEEDS_GPU in path.read_text(encoding="utf8")]
    for name in names if setting.on_cuda else names[-1:]:
        yield name, partial(run_tests, name)


def run_tests(name: str) -> Figures:
    """How many passed, failed, were skipped; which failed. Their messages are in the log."""
    # --noconftest: the tests' own set-up hides the GPU from them.
    options = ["--noconftest", "-q", "-ra", "-p", "no:cacheprovider", "-p", "tests.properties"]
    command = [sys.executable, "-m", "pytest", *options, f"tests/unit/{name}.py"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout)
    counts = {key: int(number) for number, key in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return {
        "num_passed": counts.get("passed", 0),
        "num_failed": counts.get("failed", 0) + counts.get("error", 0),
        "num_skipped": counts.get("skipped", 0),
        "failures": re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE),
    }
