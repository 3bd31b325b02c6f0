"""An untrained model and recordings of noise to evaluate it on, small enough for an evaluation to take a second.

python -m tests.evaluated kill --work DIR --kills 50 --seed 0      prints one JSON line of figures
python -m tests.evaluated kill --work DIR --changes 1              killed before each change of a file
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
from safetensors.torch import save_file

from tests.shared_work import add_campaign, campaign
from tests.tiny_model import RATE, export_tiny, make_parts, noise
from ttt_dist import evaluate
from ttt_dist.audio import load_codec
from ttt_dist.audio.codecs.whisper_vq import FIXED, WhisperVQ, WhisperVQConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout

FEW = ("--max-text", "6", "--span-limit", "12", "--steps", "2")
"""Decoding settings under which a model that never ends ends soon."""


def make_workplace(folder: Path, num_recordings: int = 4) -> Path:
    """`folder` with model/, NUMBER.wav and test.jsonl, a manifest of them."""
    folder.mkdir(parents=True, exist_ok=True)
    waves = noise(seconds=0.5, count=num_recordings)
    make_parts(folder, waves, "zero one two three four five", vocab_size=290)
    make_model(folder, "model")
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"{number}.wav", wave.numpy(), RATE)
    write_lines(folder / "test.jsonl", [line(number) for number in range(num_recordings)])
    return folder


def make_model(folder: Path, name: str, objective: Objective | None = None, seed: int = 2) -> Path:
    """A model folder of random weights that soon says: open a span."""
    return export_tiny(folder, name, open_spans, num_layers=1, init_std=0.3, objective=objective, seed=seed)


def open_spans(model: Transformer, layout: TokenLayout) -> None:
    """Let all states share a direction, in which the head says that a span begins."""
    model.embed.weight += 3.0
    model.head.weight[layout.begin_of_quad] = 1.0


def make_mute_model(folder: Path) -> Path:
    """The model with a codec of as many codes that has no decoder: a tiny glm4voice."""
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 20}
    blocks = {"max_source_positions": 600, "quantize_causal_block_size": 200, "pooling_kernel_size": 4}
    values = FIXED | sizes | blocks | {"pooling_position": 1, "quantize_position": 1, "quantize_vocab_size": 16}
    weights, model = folder / "glm", folder / "mute"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    network = WhisperVQ(WhisperVQConfig.read(values, weights / "config.json"))
    save_file(network.state_dict(), weights / "model.safetensors")
    shutil.copytree(folder / "model", model)
    shutil.rmtree(model / "codec")
    load_codec(f"glm4voice:{weights}").save(model / "codec")
    return model


def line(number: int, **fields: Any) -> dict[str, Any]:
    """An entry of a manifest."""
    return {"id": f"u/{number}", "audio": f"{number}.wav", "text": "one two", "speaker": "ann"} | fields


def write_lines(path: Path, lines: list[Any]) -> Path:
    """JSONL; strings are written as they are."""
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text(encoding="utf8").splitlines()]


def evaluation(work: Path, out: Path, *words: str) -> list[str]:
    """Arguments of an evaluation of 20 items in 7 parts, two of which cannot be used."""
    data = work / "twenty.jsonl"
    if not data.exists():
        lines = [line(number % 4, id=str(number), text=f"one {'two ' * (number % 3)}") for number in range(20)]
        write_lines(data, [*lines[:5], "broken", *lines[6:11], line(0, id="11", text=" "), *lines[12:]])
    where = ["--model", str(work / "model"), "--data", str(data), "--out", str(out), "--task", "tts"]
    return [*where, "--part-size", "3", "--max-errors", "2", "--code-temperature", "1", *FEW, *words]


def evaluate_here(arguments: list[str]) -> None:
    """Run the command in this process."""
    path, argv = list(sys.path), sys.argv
    try:
        sys.argv = ["evaluate.py", *arguments]
        evaluate.main()
    finally:
        sys.path[:], sys.argv = path, argv


def main() -> None:
    """The campaign as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data and results, made here")
    add_campaign(parser)
    args = parser.parse_args()
    if not (args.work / "model").exists():
        make_workplace(args.work)
    out = args.work / "out"
    arguments = evaluation(args.work, out)
    campaign(lambda: evaluate_here(arguments), out, args)


if __name__ == "__main__":
    main()
