"""What the checks share: a row of the table, commands of the build under test, small inputs.

A file of checks runs as a script, in the folder and with the modules of the build under test, and prints a JSON object per row. It
uses command lines, and public functions that both builds have, under whichever name.
"""

import atexit
import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile


class Failed(Exception):
    """A command that ended without what the check looks at; its status and what it said."""


Check = Callable[[Path], str]
MOST_BYTES = 8 << 30  # of addresses that a command may have: some of what was mended asked for terabytes
TRAIN = ("ttt_dist/train.py", "--config")
RECIPE = """run_dir: {folder}/run
deepspeed: ds_configs/zero1.json
model: {{hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, ffn_hidden_size: 64}}
data: {{train: {work}/shards/train}}
train: {{steps: 4, global_batch: 1, precision: fp32}}
"""


class Row(NamedTuple):
    """A check: what it looks at, the regular expression that its answer has to match, and the tests that hold it."""

    row: str
    what: str
    want: str
    tests: str
    check: Check


ROWS: list[Row] = []


def row(row: str, what: str, want: str, tests: str) -> Callable[[Check], Check]:
    """Decorator of a check; `tests` names a file of tests/unit and a test in it."""

    def keep(check: Check) -> Check:
        ROWS.append(Row(row, what, want, tests, check))
        return check

    return keep


def main() -> None:
    """Run the checks of the file that this is called from, or those of the rows that the command line names."""
    for number, (name, what, want, tests, check) in enumerate(ROWS):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory(prefix="row-") as folder:
            try:
                seen = check(Path(folder))
            except Failed as error:
                seen = str(error)
            except Exception as error:
                kind = "refused" if type(error).__name__ == "UserError" else f"traceback, {type(error).__name__}"
                seen = f"{kind}: {error}"
            seen = re.sub(r"[\w/]*/rows-\w+", "WORK", seen.replace(folder, "DIR").replace(os.getcwd(), "."))
        print(json.dumps({"row": name, "number": number, "what": what, "want": want, "tests": tests, "seen": seen}))


def module(*names: str) -> Any:
    """The first module of these names: builds have it in different places."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(names[0])


def run(*words: str | Path, env: dict[str, str] | None = None, seconds: float = 120) -> str:
    """A command of the build under test: `0: ` or its other status, and the last line that says something."""
    quiet = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env=os.environ | quiet | (env or {}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES)),
        )
    except subprocess.TimeoutExpired:
        return f"hangs: no end within {seconds:.0f} s"
    said = done.stdout + done.stderr
    if "Traceback (most recent call last)" in said:
        return f"traceback, {done.stderr.strip().splitlines()[-1][:200]}"
    return f"{done.returncode}: {said.strip()}"


def prep(*words: str | Path) -> str:
    """`python -m data_prep` of the build under test."""
    return run("-m", "data_prep", *words)


def manifest(reader: str, source: Path, *words: str | Path) -> list[dict[str, Any]]:
    """The entries that a reader lists. Raises Failed where it lists none."""
    out = source.parent / "listed.jsonl"
    said = prep("manifest", "--reader", reader, "--source", source, "--out", out, *words)
    if not out.exists():
        raise Failed(said)
    return [json.loads(line) for line in out.read_text(encoding="utf8").splitlines()]


def wave(seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    """Noise, loud in its first third: frames of an MP3 of variable rate differ much."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate)) * 0.1
    noise[len(noise) // 3 :] *= 1e-4
    return noise.astype(np.float32)


def write(path: Path, text: str | bytes) -> Path:
    """A file with this content, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf8") if isinstance(text, str) else text)
    return path


def wav(path: Path, seconds: float = 1.0, rate: int = 16_000, **options: str) -> Path:
    """A recording of `wave`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(seconds, rate), rate, **options)
    return path


def dry_run(folder: Path, *settings: str, recipe: str = RECIPE, env: dict[str, str] | None = None) -> str:
    """What `train.py --dry-run` says of a small run, on a shard that the build under test made."""
    config = write(folder / "run.yaml", recipe.format(folder=folder, work=work()))
    return run(*TRAIN, config, "--dry-run", *settings, env=env)


@cache
def work() -> Path:
    """A folder with codec, tokenizer, samples and a shard of some speech, by the build under test. Raises Failed."""
    folder = Path(tempfile.mkdtemp(prefix="rows-"))
    atexit.register(shutil.rmtree, folder)
    for number in range(8):
        wav(folder / "wav" / f"{'one two' if number % 2 else 'three'}_a_{number}.wav", 1.0 + number / 10)
    codec = ["--train-codec", "--codec", "melvq", "--codebook-size", "16"]
    texts = ["--template", "asr,tts", "--train-tokenizer", "--vocab-size", "300", "--tokenizer-out"]
    pattern = ["--reader", "pattern", "--pattern", "{text}_{speaker}_{index}.wav"]
    commands: list[list[str | Path]] = [
        ["manifest", *pattern, "--source", folder / "wav", "--out", folder / "wav.jsonl"],
        ["encode", "--manifest", folder / "wav.jsonl", *codec, "--out", folder / "codes"],
        ["compose", "--codes", folder / "codes", *texts, folder / "tokenizer", "--out", folder / "samples"],
        ["pack", "--samples", folder / "samples", "--seq-len", "256", "--out", folder / "shards" / "train"],
    ]
    for words in commands:
        said = prep(*words)
        if not said.startswith("0: "):
            raise Failed(said)
    return folder
