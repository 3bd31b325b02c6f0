"""Training steps per second of `ttt_dist/train.py`, one process, fp32: a workload of `benchmarks.against`.

    python -P benchmarks/workloads/train_step.py demo|vocab [--prepare] --folder INPUTS

`demo` is the model of recipes/demo.yaml with that recipe's settings on samples of its lengths; `vocab` the small model of
benchmarks/train_step.py, with its 168,072 tokens, on the samples of benchmarks/mixture.py. Each step is a global batch as
the command trains it: reading, noise, forward, backward, clipping, AdamW, records. The last line is {"speed": steps/s}.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

WARM_UP, STEPS = {"demo": 15, "vocab": 2}, {"demo": 25, "vocab": 4}
LIMIT_S = 300.0
SMALL = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 768}


def main() -> None:
    """Make the inputs, or train on them and tell how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=tuple(STEPS))
    parser.add_argument("--prepare", action="store_true", help="make the inputs and stop")
    parser.add_argument("--folder", type=Path, required=True, help="where the inputs are")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.shape, args.folder)
    else:
        seconds = step_seconds(args.shape, args.folder)
        sys.stdout.write(json.dumps({"speed": 1 / statistics.median(seconds)}) + "\n")


def prepare(shape: str, folder: Path) -> None:
    """Packed shards with what belongs beside them, and the run's config."""
    from benchmarks.mixture import LONGEST, draw_samples, pack_samples
    from ttt_dist.data.shards import ShardWriter
    from ttt_dist.sequence.text_tokenizer import train_sentencepiece
    from ttt_dist.sequence.tokens import extend, released

    shards = folder / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = train_sentencepiece(
        ["one two three four five", "six seven eight nine zero"] * 20, shards / "tokenizer", 300
    )
    for name in ("codec/codec.json", "template.json"):
        (shards / name).parent.mkdir(exist_ok=True)
        (shards / name).write_text("{}")
    if shape == "demo":
        layout = extend(tokenizer, 512)
        samples, seq_len = spoken_digits(layout, 1500), 1024
    else:
        layout = released()
        samples, seq_len = draw_samples(layout, 200, 0), LONGEST
    with ShardWriter(shards / "train", {"layout": layout.to_dict(), "seq_len": seq_len}) as writer:
        for pack in pack_samples(samples, seq_len, 0):
            writer.add(pack)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(shape, folder)))


def spoken_digits(layout: Any, number: int) -> list[Any]:
    """Samples as the demo's: one to four words in 12.5 codes a second, half to be transcribed, half to be spoken."""
    import numpy as np

    from ttt_dist.sequence.sample import Sample

    random, samples = np.random.default_rng(0), []
    for index in range(number):
        num_words = int(random.integers(1, 5))
        words = random.integers(0, layout.num_text_tokens, 2 * num_words)
        codes = layout.code_ids(random.integers(0, layout.num_codes, 8 * num_words + int(random.integers(0, 7))))
        prompt = random.integers(0, layout.num_text_tokens, 12)
        heard = [layout.begin_of_audio, *codes, layout.end_of_audio]
        spoken = [layout.begin_of_quad, *codes, layout.end_of_audio_span_last]
        asks, answers = ([*prompt, *heard], [*words]) if index % 2 else ([*prompt, *words], spoken)
        ids = np.array([layout.im_start, *asks, layout.im_end, *answers, layout.im_end], dtype=np.int32)
        samples.append(Sample.from_arrays(ids, np.arange(len(ids)) >= len(asks) + 2))
    return samples


def settings(shape: str, folder: Path) -> dict[str, Any]:
    """The run's config: it never gets to its end, and neither evaluates nor saves before."""
    recipe: dict[str, Any] = yaml.safe_load(Path("recipes/demo.yaml").read_text(encoding="utf8"))
    recipe["objective"] = {"preset": "corrected", "p_mix": 0.1}  # by this name all builds know it
    train: dict[str, Any] = recipe["train"] | {"steps": 10000, "eval_every": 0}
    if shape == "vocab":
        recipe |= {"model": SMALL | {"tie_embeddings": True}, "deepspeed": "ds_configs/zero1.json"}
        train |= {"lr": 1e-4}
    changed = {
        "run_dir": str(folder / "run"),
        "data": {"train": str(folder / "shards" / "train")},
        "train": train,
        "checkpoint": {"save_every": 0},
        "telemetry": {"log_every": 1},
    }
    return {key: value for key, value in recipe.items() if key not in ("prep", "evaluation")} | changed


def step_seconds(shape: str, folder: Path) -> list[float]:
    """Wall seconds of each measured step, records included, from the times at which metrics.jsonl grows."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = [sys.executable, "ttt_dist/train.py", "--config", str(folder / "config.yaml")]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
    metrics, needed, end = folder / "run" / "metrics.jsonl", WARM_UP[shape] + STEPS[shape], time.monotonic() + LIMIT_S
    lines: list[str] = []
    try:
        while len(lines) < needed and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
    finally:
        process.kill()  # what it would save and export is not measured
        process.wait()
    if len(lines) < needed:
        raise RuntimeError(f"{len(lines)} steps of {needed}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return [json.loads(line)["step_s"] for line in lines[WARM_UP[shape] : needed]]


if __name__ == "__main__":
    main()
