#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, CPU; small random EnCodec with the settings of the 48 kHz model.
# Expected: EncodecModel.encode with padding_mask gives an utterance the codes and the scale it has alone; its docstring
#   says the mask is needed to compute the correct scale.
# Seen: the mask only sets padded samples to zero. The scale is the root mean square over the padded length (half
#   a second padded to a second: divided by the square root of 2) and the group norms average over the padding, so
#   codes change from the first frame on. With the settings of the 24 kHz model (causal, no scale) they stay.
# Why it matters: tokens made in batches depend on the longest mate of the batch: a corpus encoded twice, or with another
#   batch size, has other labels, and generation, which encodes a prompt alone, meets codes never trained on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat > "$work/codes.py" <<'PY'
import sys

import torch
from transformers import EncodecConfig, EncodecModel


def encode(samples, padded, channels, **settings):
    """Share of the codes of one utterance that padding changes, in the first ten frames and in all, and the scales."""
    torch.manual_seed(0)
    small = {"num_filters": 4, "hidden_size": 16, "codebook_size": 64, "codebook_dim": 16}
    model = EncodecModel(EncodecConfig(**small, audio_channels=channels, **settings)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("embed"):
            buffer.copy_(0.05 * torch.randn(buffer.shape))
    wave, mask = torch.zeros(1, channels, padded), torch.zeros(1, channels, padded, dtype=torch.bool)
    wave[..., :samples], mask[..., :samples] = 0.3 * torch.randn(1, channels, samples), True
    with torch.no_grad():
        alone = model.encode(wave[..., :samples], mask[..., :samples], bandwidth=6.0)
        batch = model.encode(wave, mask, bandwidth=6.0)
    codes = alone.audio_codes[0]
    differ = (codes != batch.audio_codes[0][..., : codes.shape[-1]]).float()
    scales = [None if out.audio_scales[0] is None else round(out.audio_scales[0].item(), 4) for out in (alone, batch)]
    return round(differ[..., :10].mean().item(), 2), round(differ.mean().item(), 2), scales


stereo = {"sampling_rate": 48000, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}
stereo |= {"norm_type": "time_group_norm", "use_causal_conv": False}
first, whole, scales = encode(24000, 48000, 2, **stereo)
print("48 kHz settings: changed in the first ten frames", first, "in all", whole, "scale alone, padded", scales)
causal = encode(12800, 24000, 1)
print("24 kHz settings:", *causal)
sys.exit(not (first > 0.02 and whole > 0.02 and abs(scales[0] / scales[1] - 2**0.5) < 0.01 and causal[1] == 0))
PY
"$work/venv/bin/python" -W ignore "$work/codes.py"
