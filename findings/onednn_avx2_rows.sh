#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), its oneDNN, CPU, fp32, on AVX2 (a processor without AVX-512, or ONEDNN_MAX_CPU_ISA=AVX2).
# Expected: what a row of x @ W.T gives, to the last bit, depends on the number of rows for a single one at most.
# Seen: oneDNN takes six rows at a time. Up to three that are left over, and all rows where there are many
#   (1 / rows + 1 / columns < 0.0038), go through another kernel, which sums in another order: their last bits differ.
# Why it matters: replies that are to be the same whatever else is in the batch (greedy decoding, caches against a plain loop, tests to the last
#   bit) are so on AVX-512, and no longer on an older machine, a laptop say. Padding to multiples of six, and splitting what is large, makes them so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/rows.py" <<'PY'
import sys

import torch

torch.manual_seed(0)
torch.set_num_threads(1)  # more share the rows, and each leaves some over
weight, x = torch.randn(512, 1408), torch.randn(600, 512)
linear = torch.ops.mkldnn._linear_pointwise.default  # what torch's compiler puts in the place of a linear layer


def rows(count):
    return linear(x[:count], weight.T, None, "none", [], "")


with torch.inference_mode():
    usual = rows(240)
    other = [count for count in range(1, 600) if not torch.equal(rows(count)[:240], usual[:count])]
few = [count for count in other if 3 < count < 240]
many = next(n for n in range(240, 600) if all(m in other for m in range(n, n + 20)))
print("other last bits with", few[:8], "... rows, and from", many, "rows on")
sys.exit(not (few and all(count % 6 in (1, 2, 3) for count in few[:8]) and many < 400))
PY
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" -W ignore "$work/rows.py"
