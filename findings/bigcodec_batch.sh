#!/usr/bin/env bash
# bigcodec 0.0.3, torch 2.11.0, CPU; a small random BigCodec.
# Expected: decode(encode(x)) gives as many waveforms as x has, as it does for one.
# Seen: codes have the shape [codebooks, batch, frames], and decode takes [batch, codebooks, frames]. For one waveform and
#   one codebook both are [1, 1, frames]; for a batch, decode reads its rows as codebooks and speaks the first of them alone.
# Why it matters: a batch comes back as one waveform without an error, and a list of files saved from it by zip() has one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q bigcodec==0.0.3 torch==2.11.0 torchaudio==2.11.0 numpy==2.4.6
cat > "$work/batch.py" <<'PY'
import sys

import torch
from bigcodec import BigCodec

torch.manual_seed(0)
model = BigCodec(
    ngf=4, use_rnn=True, rnn_bidirectional=False, rnn_num_layers=1, up_ratios=[2, 2, 2, 5, 5], dilations=[1, 3, 9],
    out_channels=32, codebook_size=64, vq_num_quantizers=1, codebook_dim=4,
).eval()
waves = 0.1 * torch.randn(3, 1, 4000)
with torch.no_grad():
    codes = model.encode(waves)
    spoken, first = model.decode(codes), model.decode(model.encode(waves[:1]))
print("waves", list(waves.shape), "codes", list(codes.shape), "speech", list(spoken.shape))
same = torch.allclose(spoken, first, atol=1e-5)
print("speech is the first wave's:", same)
sys.exit(not (list(codes.shape) == [1, 3, 20] and spoken.shape[0] == 1 and same))
PY
"$work/venv/bin/python" -W ignore "$work/batch.py"
