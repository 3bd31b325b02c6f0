"""How many utterances share a forward of Mimi in `data_prep encode`, at lengths like LibriSpeech's.

Speed is the mean, over all forwards of the network's convolutional encoder (each is one batch going through all of its layers
once, over whatever stretch of time), of the utterances that have sound in it. The network is a small one with random weights:
who shares a forward depends on lengths alone. The recordings are noise at 16 kHz, 24 kHz for the codec.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

NUM_UTTERANCES = 256
RATE = 16_000
LENGTHS = [
    (0.05, 1.5, 3.5),
    (0.15, 3.5, 9.0),
    (0.11, 9.0, 12.0),
    (0.56, 12.0, 16.0),
    (0.12, 16.0, 17.0),
    (0.01, 17.0, 35.0),
]
"""Shares of the utterances, and between how many seconds they lie: 12.2 s on average, like LibriSpeech's training sets."""
MIMI: dict[str, Any] = {
    "num_filters": 4,
    "hidden_size": 32,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
    "upsample_groups": 32,
}


def prepare(folder: Path) -> None:
    """The recordings, their manifest, and the network."""
    import numpy as np
    import soundfile
    import torch
    from transformers import MimiConfig, MimiModel

    random = np.random.default_rng(0)
    shares, shortest, longest = zip(*LENGTHS, strict=True)
    bands = random.choice(len(LENGTHS), NUM_UTTERANCES, p=shares)
    (folder / "audio").mkdir(parents=True)
    lines = []
    for number, band in enumerate(bands):
        samples = round(random.uniform(shortest[band], longest[band]) * RATE)
        soundfile.write(folder / "audio" / f"{number}.wav", 0.1 * random.standard_normal(samples), RATE)
        lines.append({"audio": f"audio/{number}.wav", "text": "noise", "duration": round(samples / RATE, 3)})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(0)
    MimiModel(MimiConfig(**MIMI)).save_pretrained(folder / "mimi")


def main() -> None:
    """Prepare, or encode and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.prepare:
        prepare(args.folder)
        return
    from transformers.models.mimi.modeling_mimi import MimiEncoder

    from data_prep.__main__ import main as data_prep

    sharing = []
    forward = MimiEncoder.forward

    def counted(self: Any, hidden_states: Any, *more: Any, **named: Any) -> Any:
        sharing.append(int((hidden_states != 0).flatten(1).any(dim=1).sum()))  # [B, 1, T]
        return forward(self, hidden_states, *more, **named)

    MimiEncoder.forward = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        words = ["--manifest", str(args.folder / "manifest.jsonl"), "--codec", f"mimi:{args.folder / 'mimi'}"]
        data_prep(["encode", *words, "--out", out])
    sys.stdout.write(json.dumps({"speed": sum(sharing) / len(sharing)}) + "\n")


if __name__ == "__main__":
    main()
