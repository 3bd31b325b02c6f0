#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, CPU; DacModel with random weights and the strides of the three published models.
# Expected: n frames decode to n times the hop (the product of the strides), as they do for the 44.1 kHz model.
# Seen: with the strides of the 16 and 24 kHz models (2, 4, 5, 8; hop 320) there are 8 samples fewer, however long the sound: a transposed convolution
#   of the odd stride 5 gives one sample less, and the strides behind it make 8 of that.
# Why it matters: a round trip is not as long as what went in, speech of several decoded pieces moves by 8 samples a piece, and losses on
#   waveforms need a cut.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat > "$work/lengths.py" <<'PY'
import math
import sys

import torch
from transformers import DacConfig, DacModel


def missing(strides, frames):
    config = DacConfig(
        encoder_hidden_size=8, decoder_hidden_size=64, n_codebooks=2,
        downsampling_ratios=strides, upsampling_ratios=strides[::-1],
    )
    torch.manual_seed(0)
    model = DacModel(config).eval()
    hop = math.prod(strides)
    with torch.no_grad():
        codes = model.encode(0.1 * torch.randn(1, 1, frames * hop)).audio_codes
        wave = model.decode(audio_codes=codes).audio_values
    return codes.shape[-1] * hop - wave.shape[-1]


found = {}
for rates, strides in (("44.1 kHz", [2, 4, 8, 8]), ("16 and 24 kHz", [2, 4, 5, 8])):
    found[rates] = [missing(strides, frames) for frames in (10, 50, 150)]
    print(f"{rates}, strides {strides}: of 10, 50 and 150 frames {found[rates]} samples are missing")
sys.exit(found != {"44.1 kHz": [0, 0, 0], "16 and 24 kHz": [8, 8, 8]})
PY
"$work/venv/bin/python" -W ignore "$work/lengths.py"
