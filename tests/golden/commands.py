"""How commands of a build are started on the golden files, and what is read of their results.

Nothing of the project is imported: `make.py` runs another build.
"""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SAVED, STEPS = 300, 304
"""The checkpoint's step and the run's last one."""
FIGURES = ("step", "loss", "ar_loss", "nar_loss", "ar_tokens", "nar_tokens", "grad_norm", "lr")
FEW = ("--max-text", "24", "--span-limit", "24", "--max-codes", "60")
COLD = ("--temperature", "0.001", "--code-temperature", "0.001")
"""Sampled, but whatever is drawn gives the likeliest: a seed draws other numbers than it did in that build (CHANGELOG.md)."""
REQUESTS: dict[str, tuple[str, ...]] = {
    "asr": ("--audio", "0.flac"),
    "asr sampled": ("--audio", "1.flac", "--seed", "3", *COLD),
    "tts": ("--prompt", "two one", "--block", "6", "--steps", "3"),
    "tts sampled": ("--prompt", "zero three", "--seed", "5", "--block", "8", "--steps", "8", *COLD),
    "tts guided": ("--prompt", "three", "--block", "4", "--steps", "4", "--cfg", "1.0", "--threshold", "0.5"),
    "chat": ("--chat", "--audio", "2.flac", "--block", "12", "--steps", "4", "--block-cache", "block_causal"),
    "chat sampled": ("--chat", "--prompt", "one two", "--seed", "1", "--block", "5", "--steps", "2", *COLD),
}
"""Words behind generate.py, of every way to ask; each ends soon."""
EVALUATIONS: dict[str, tuple[str, ...]] = {
    "asr": ("--task", "asr", "--data", "test.jsonl"),
    "likelihood": ("--task", "likelihood", "--data", "shards/valid"),
}
"""Words behind evaluate.py."""


def speaker(codes: Path) -> str:
    """A --decoder-command that leaves the codes in a file and says nothing."""
    program = Path(__file__).with_name("keep_codes.py")
    return f"{sys.executable} {program} {{codes}} {{wav}} {codes}"


def request(name: str, folder: Path) -> list[str]:
    """Arguments of generate.py for a request on the golden files in the current folder; codes go to `folder`."""
    words = [*REQUESTS[name], *FEW]
    if "--audio" not in words or "--chat" in words:
        words += ["--out", str(folder / "out.wav"), "--decoder-command", speaker(folder / "codes.json")]
    return ["--model", "export", *words]


def answer(printed: str, folder: Path) -> dict[str, Any]:
    """The response to `request`: its text, and its codes where there are any."""
    codes = folder / "codes.json"
    return {"text": printed.splitlines()[0], "codes": json.loads(codes.read_text()) if codes.is_file() else []}


def evaluation(name: str, out: Path) -> list[str]:
    """Arguments of evaluate.py for an evaluation on the golden files in the current folder."""
    return ["--model", "export", *EVALUATIONS[name], "--out", str(out), *FEW]


def scores(out: Path, name: str) -> dict[str, Any]:
    """What an evaluation found: the scores of the summary, and how often each transcript was heard, if any."""
    task = EVALUATIONS[name][1]
    lines = [json.loads(line) for line in (out / f"{task}.jsonl").read_text().splitlines()]
    values = json.loads((out / f"{task}_summary.json").read_text())["scores"]
    heard = Counter(line["hypothesis"] for line in lines if "hypothesis" in line)
    return {"scores": {name: score["value"] for name, score in values.items()}, "heard": dict(heard.most_common())}


def environment(build: Path, **more: str) -> dict[str, str]:
    """Of a command of `build`: its modules, one thread, the CPU."""
    return {**os.environ, "PYTHONPATH": str(build), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def run(build: Path, work: Path, *words: str) -> str:
    """What `python WORDS` prints with a build's modules in the folder `work`."""
    done = subprocess.run(
        [sys.executable, *words], cwd=work, env=environment(build), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(build: Path, work: Path, num_processes: int, *words: str) -> str:
    """Run train.py of a build on so many processes, started as `srun` starts them; what they tell."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(num_processes), "LOCAL_SIZE": str(num_processes)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(build / "ttt_dist" / "train.py"), *words], cwd=work, text=True,
            env=environment(build, RANK=str(rank), LOCAL_RANK=str(rank), **meeting, **sizes),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(num_processes)
    ]  # fmt: skip
    told = "".join(process.communicate(timeout=300)[0] for process in processes)
    assert not any(process.returncode for process in processes), told
    return told


def figures(run_dir: Path, first: int, last: int) -> list[dict[str, float]]:
    """Loss and gradient norm of the steps `first` to `last`, as metrics.jsonl has them."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in FIGURES} for line in lines if first <= line["step"] <= last and "loss" in line
    ]
