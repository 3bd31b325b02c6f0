#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), CPU, x86; torch._int_mm, the product of int8 matrices in int32.
# Expected: whole numbers are added exactly, on every processor.
# Seen: where the processor has no VNNI (here: oneDNN is told to use AVX2 alone), products are added in pairs in 16 bits, which overflow: 768 x 127 x 127 =
#   12,387,072 comes out as 97,920. No error, no warning. With weights of up to 63 (7 bits) the result is right.
# Why it matters: a quantised model that was checked on one machine gives other numbers on an older one; keep weights to 7 bits there, or test one product first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/product.py" <<'PY'
import sys

import torch

a = torch.full((4, 768), 127, dtype=torch.int8)
found = {size: int(torch._int_mm(a, torch.full((512, 768), size, dtype=torch.int8).T)[0, 0]) for size in (127, 63)}
for size, value in found.items():
    print(f"torch {torch.__version__}, AVX2 alone: 768 x 127 x {size} = {768 * 127 * size:,} comes out as {value:,}")
sys.exit(not (found[63] == 768 * 127 * 63 and found[127] == 97_920))
PY
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" -W ignore "$work/product.py"
