"""Make the golden files by another build: what it packs, trains, saves, exports and decodes, as small as it goes.

    git worktree add --detach /tmp/build f7f6f4f
    python -m tests.golden.make --build /tmp/build --out tests/golden/files

OUT holds a corpus of tones, a recipe, shards, a run with its checkpoint, its export, and expected.json: figures of training steps and
the responses to some requests.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tests.golden import commands

RATE = 8000
WORDS = {"zero": 300, "one": 600, "two": 1200, "three": 2400}
"""Each is a tone of so many Hz."""
KEPT = ("config.yaml", "checkpoints")
RECIPE = f"""\
# A run of the smallest kind, which leaves to the build what the objective is.
run_dir: run
seed: 7
deepspeed: ds_configs/zero1.json

model:
  hidden_size: 16
  num_layers: 2
  num_heads: 2
  num_kv_heads: 1
  ffn_hidden_size: 32
  rope_theta: 1.0e4
  init_std: 0.05

data:
  train: shards/train
  valid: shards/valid

train:
  steps: {commands.STEPS}
  global_batch: 4
  micro_batch: 1
  lr: 1.0e-2
  warmup: 10
  eval_every: 60
  eval_packs: 2

checkpoint:
  save_every: {commands.SAVED}
  keep_last: 0

telemetry:
  log_every: 1
"""


def main() -> None:
    """Make all in a temporary folder, and keep what tests read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="working tree of the build whose files are wanted")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; one that is there is replaced")
    args = parser.parse_args()
    build = args.build.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_corpus(work)
        prepare(build, work)
        expected = train(build, work)
        expected |= {"answers": decode(build, work), "evaluations": evaluate(build, work)}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items()]
        (work / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        keep(work, args.out)


def make_corpus(work: Path) -> None:
    """Strings of words as tones, and manifests of them: all, and a few."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(60):
        words = random.choice(list(WORDS), random.integers(1, 4)).tolist()
        time = np.arange(RATE // 5) / RATE
        tones = [0.3 * np.sin(2 * np.pi * WORDS[word] * random.uniform(0.97, 1.03) * time) for word in words]
        wave = np.concatenate(tones) + 0.003 * random.standard_normal(len(tones) * len(time))
        soundfile.write(work / f"{number}.flac", wave, RATE)
        lines.append({"id": f"tones/{number}", "audio": f"{number}.flac", "text": " ".join(words), "speaker": "ann"})
    for name, some in {"test": lines[:4], "train": lines}.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))


def prepare(build: Path, work: Path) -> None:
    """Shards of all utterances, as data_prep makes them: a set of two for training, and one that is held out."""
    codec = ("--codec", "melvq", "--train-codec", "--sample-rate", str(RATE), "--codebook-size", "16")
    commands.run(build, work, "-m", "data_prep", "encode", "--manifest", "train.jsonl", *codec, "--out", "codes")
    text = ("--template", "asr,tts", "--train-tokenizer", "--vocab-size", "290", "--name-speaker")
    ratios = ("--text-ratio", "4", "--audio-ratio", "8")
    commands.run(build, work, "-m", "data_prep", "compose", "--codes", "codes", *text, *ratios, "--out", "samples")
    pack = ("-m", "data_prep", "pack", "--samples", "samples", "--seq-len", "128")
    commands.run(build, work, *pack, "--shard-samples", "60", "--out", "shards/train")
    commands.run(build, work, *pack, "--seed", "1", "--out", "shards/valid")
    (work / "recipe.yaml").write_text(RECIPE)
    (work / "ds_configs").mkdir()
    shutil.copy(build / "ds_configs" / "zero1.json", work / "ds_configs")


def train(build: Path, work: Path) -> dict[str, Any]:
    """The run on two processes, a checkpoint before its end; the figures of its first and last steps."""
    commands.train(build, work, 2, "--config", "recipe.yaml")
    run = work / "run"
    shutil.copytree(run / "export", work / "export")
    shutil.rmtree(run / "checkpoints" / f"step-{commands.STEPS:08d}")
    (run / "checkpoints" / "latest").write_text(f"step-{commands.SAVED:08d}\n")
    return {
        "first": commands.figures(run, 1, 4),
        "last": commands.figures(run, commands.SAVED + 1, commands.STEPS),
    }


def decode(build: Path, work: Path) -> dict[str, Any]:
    """The responses to all requests."""
    answers = {}
    for name in commands.REQUESTS:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            words = [str(build / "ttt_dist" / "generate.py"), *commands.request(name, place)]
            answers[name] = commands.answer(commands.run(build, work, *words), place)
    return answers


def evaluate(build: Path, work: Path) -> dict[str, Any]:
    """The scores of all evaluations."""
    found: dict[str, Any] = {}
    program = str(build / "ttt_dist" / "evaluate.py")
    for name in commands.EVALUATIONS:
        out = Path("scores") / name
        commands.run(build, work, program, *commands.evaluation(name, out))
        found[name] = commands.scores(work / out, name)
    return found


def keep(work: Path, out: Path) -> None:
    """Copy what tests read."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    files = ["recipe.yaml", "test.jsonl", "expected.json", "shards", "export", "ds_configs"]
    files += [f"{number}.flac" for number in range(4)] + [f"run/{name}" for name in KEPT]
    for name in files:
        (out / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (work / name).is_dir() else shutil.copyfile
        copy(work / name, out / name)


if __name__ == "__main__":
    main()
