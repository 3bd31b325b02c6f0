"""Rows A8, A15 and A16, B3 to B5, B7 and B8: what hangs on a run of training, its folder and its export."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from kit import RECIPE, TRAIN, Failed, dry_run, main, module, prep, row, run, wave, work, write

SETTINGS = ("train.steps=4", "train.warmup=1", "checkpoint.save_every=2", "telemetry.log_every=1")


def train(config: Path, *settings: str) -> str:
    """Train as SETTINGS say, and `settings` after them."""
    return run(*TRAIN, config, *SETTINGS, *settings, seconds=400)


@cache
def trained() -> Path:
    """The folder of a run of four steps with two checkpoints and an export, by the build under test."""
    config = write(work() / "run.yaml", RECIPE.format(folder=work(), work=work()))
    said = train(config)
    if not said.startswith("0: "):
        raise Failed(said[-300:])
    return work() / "run"


def again(folder: Path) -> tuple[Path, Path]:
    """A copy of the run, and the config to go on with it."""
    shutil.copytree(trained(), folder / "run", symlinks=True)
    return folder / "run", write(folder / "run.yaml", RECIPE.format(folder=folder, work=work()))


@row(
    "A8",
    "AutoTokenizer on an export of the trained tokenizer",
    "^same ids|^refused",
    "auto_tokenizer::a_trained_tokenizer",
)
def auto_tokenizer(folder: Path) -> str:
    """What AutoTokenizer makes of an export, beside the ids of training."""
    tokens = module("ttt_dist.sequence.tokens").TokenLayout.load(trained() / "export" / "token_layout.json")
    ours = module("ttt_dist.sequence.text_tokenizer").load_tokenizer(work() / "tokenizer")
    said = run("tools/convert_checkpoint.py", "export-hf", "--source", trained() / "export", "--out", folder / "hf")
    if not said.startswith("0: "):
        raise Failed(said)
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(folder / "hf")
    except Exception as error:
        return f"refused by AutoTokenizer: {str(error)[:80]}"
    same = theirs("one two")["input_ids"] == ours.encode("one two")
    code = theirs("<|audio_3|>")["input_ids"]
    return f"{'same' if same and code == [tokens.first_code + 3] else 'other'} ids, <|audio_3|> is {code}"


@row(
    "B3",
    "resume with the first byte of the newest run.json damaged",
    "^0: .*step 2",
    "checkpoint::any_damage_to_any_file",
)
def damaged_metadata(folder: Path) -> str:
    copy, config = again(folder)
    newest = max(copy.glob("checkpoints/step-*"))
    path = next(path for path in newest.glob("*.json") if '"step"' in path.read_text())
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    return about(train(config, "train.steps=5"), "resum|step|damag|error")


def about(said: str, words: str) -> str:
    """Status and the lines of an output in which these words stand, or its traceback."""
    if said.startswith("traceback"):
        return said
    return f"{said[:2]} " + " | ".join(line for line in said.splitlines() if re.search(words, line))[:400]


@row(
    "A15",
    "resume with more steps than the cosine was made for",
    "^0: .*(rate|lr)",
    "train_command (tests/distributed)",
)
def more_steps(folder: Path) -> str:
    _, config = again(folder)
    return about(train(config, "train.steps=8"), "warning|error")


@row("B4", "metrics.jsonl on a full disk: steps done, exit status", "^0: .*without", "full_disk (tests/distributed)")
def full_disk(folder: Path) -> str:
    config = write(folder / "run.yaml", RECIPE.format(folder=folder, work=work()))
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").symlink_to("/dev/full")
    said = train(config)
    saved = len(list(folder.glob("run/checkpoints/step-*")))
    return f"{about(said, 'warning|error')}, {saved} checkpoints"


@row("B5", "tools/report.py with a damaged line in metrics.jsonl", "^0: ", "telemetry::a_damaged_record, report")
def report(folder: Path) -> str:
    copy, _ = again(folder)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    write(
        copy / "metrics.jsonl",
        "\n".join([lines[0], '{"step": "x", "loss', "[1, 2]", '{"step": null}', *lines[1:]]) + "\n",
    )
    return run("tools/report.py", copy)


@row(
    "B7",
    "a shard with a flipped byte in every hundredth token, trained on",
    "^1: .*shards/train",
    "shards::any_changed_byte",
)
def flipped(folder: Path) -> str:
    shutil.copytree(work() / "shards", folder / "shards")
    path = folder / "shards" / "train.bin"
    data = bytearray(path.read_bytes())
    data[3::400] = bytes(byte ^ 0x7F for byte in data[3::400])
    path.write_bytes(data)
    config = write(folder / "run.yaml", RECIPE.format(folder=folder, work=folder))
    said = train(config)
    return about(said, "error")


def served(request: bytes) -> str:
    """The first line of the page's answer to a request that nobody's browser sends."""
    command = [sys.executable, "ttt_dist/serve.py", "--model", str(trained() / "export"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        stop = threading.Timer(120, process.kill)
        stop.start()
        try:
            assert process.stdout is not None
            found: Any = next((m for line in process.stdout if (m := re.search(r"http://[^:]+:(\d+)", line))), None)
            if found is None:
                return "the page does not start"
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=20) as connection:
                connection.sendall(request.replace(b"PORT", found[1].encode()))
                return connection.recv(4096).split(b"\r\n")[0].decode()
        finally:
            stop.cancel()
            process.kill()


@row("B8", "a POST with `Origin: http://[`", "^HTTP/1.[01] 4", "serve_hostile::a_malformed_origin")
def origin(folder: Path) -> str:
    return served(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nOrigin: http://[\r\nContent-Length: 0\r\n\r\n")


@row(
    "A16",
    "W&B after going back: the step that wandb is given",
    "^steps .*, none lost",
    "telemetry::wandb_keeps_what_a_run_does_again",
)
def wandb(folder: Path) -> str:
    """Steps that a run logs again after it went back to a checkpoint."""
    code = """
import sys, types, os
seen = []
class Run:
    step = 0; id = "x"; dir = "."; summary = {}
    def log(self, values, step=None, **_): seen.append(step if step is not None else dict(values).get("step", "own axis"))
    def define_metric(self, *a, **k): pass
    def finish(self, *a, **k): pass
    def __getattr__(self, name): return lambda *a, **k: None
wandb = types.ModuleType("wandb"); wandb.init = lambda *a, **k: Run(); wandb.Settings = lambda **k: None; wandb.__version__ = "0"
import importlib.machinery; wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
wandb.define_metric = lambda *a, **k: None
sys.modules["wandb"] = wandb
from ttt_dist.telemetry import metrics
for start, steps in ((0, (10, 20, 30)), (10, (20, 30))):
    try: log = metrics.open_metrics(PATH, start, {}, "offline", "p", False)
    except TypeError: log = metrics.open_metrics(PATH, start, {}, "offline", "p")
    for step in steps: log.log(step, {"loss": 1.0})
given = [step for step in seen if isinstance(step, int)]
lost = sum(step <= max(given[:place], default=-1) for place, step in enumerate(given))
print("steps", seen, f"{lost or 'none'} lost")
"""
    (folder / "run").mkdir()
    said = run("-c", f"from pathlib import Path\nPATH = Path({str(folder / 'run')!r})\n{code}")
    return said.removeprefix("0: ").replace("] none", "], none")


@row(
    "C",
    "train.init_from=a folder of Hugging Face's",
    "^1: .*import-hf",
    "init_from::a_published_folder_names_the_import",
)
def raw_folder(folder: Path) -> str:
    write(folder / "hf" / "config.json", json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    (folder / "hf" / "model.safetensors").touch()
    return dry_run(folder, f"train.init_from={folder}/hf")


@row(
    "C",
    "a stale model.safetensors.index.json beside a whole file",
    "^0: ",
    "hostile_json::an_index_that_is_left_beside",
)
def stale_index(folder: Path) -> str:
    shutil.copytree(trained() / "export", folder / "model")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    write(folder / "model" / "model.safetensors.index.json", json.dumps(index))
    return run("tools/convert_checkpoint.py", "export-hf", "--source", folder / "model", "--out", folder / "hf")


@row("A16", "a float WAV at 1,000 times full scale, encoded: told", "^0: .*full scale", "levels::encode_counts_them")
def levels(folder: Path) -> str:
    soundfile.write(folder / "a.wav", wave() * 1e4, 16_000, subtype="FLOAT")
    manifest = write(folder / "m.jsonl", '{"id": "a", "audio": "a.wav", "text": "one"}\n')
    return prep("encode", "--manifest", manifest, "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")


@row("A16", "stereo in opposite phase, encoded: told", "^0: .*opposite phase", "levels::levels_are_told")
def phase(folder: Path) -> str:
    soundfile.write(folder / "a.wav", np.stack([wave(), -wave()], 1), 16_000)
    manifest = write(folder / "m.jsonl", '{"id": "a", "audio": "a.wav", "text": "one"}\n')
    return prep("encode", "--manifest", manifest, "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")


if __name__ == "__main__":
    main()
