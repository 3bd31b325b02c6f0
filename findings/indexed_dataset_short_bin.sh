#!/usr/bin/env bash
# megatron-core 0.16.1, torch 2.13.0, numpy 2.4.6, CPU.
# Expected: a .bin shorter than its .idx says is refused, or at least reading beyond its end is an error; and
#   IndexedDataset.get(document, offset, length) stays inside the document.
# Seen: with mmap=True the lost documents raise ValueError. With mmap=False nothing is raised: the reader fills an
#   uninitialised numpy array and does not look at how many bytes came, so a lost document has its full length, its
#   tail whatever lay in that memory (often tokens of a document read before). And get() runs on into the next
#   document, with both readers.
# Why it matters: token shards are copied between file systems, and mmap=False is the way out on network ones. After
#   an interrupted copy the model trains on stale tokens and no line of the log says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6
cat > "$work/write.py" <<'PY'
import os
import sys

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

prefix = sys.argv[1]
builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
for i in range(4):
    builder.add_document(torch.arange(100 * i, 100 * i + 10), [10])
builder.finalize(prefix + ".idx")
os.truncate(prefix + ".bin", 4 * 35)  # half of the last document is lost
PY
cat > "$work/read.py" <<'PY'
import sys

from megatron.core.datasets.indexed_dataset import IndexedDataset

prefix, last = sys.argv[1], list(range(300, 310))
mapped, plain = (IndexedDataset(prefix, mmap=mmap) for mmap in (True, False))
try:
    mapped_says = f"no error: {mapped[3]}"
except ValueError as error:
    mapped_says = f"ValueError: {error}"
before, short = plain[2].tolist(), plain[3].tolist()
beyond = [dataset.get(1, 8, 5).tolist() for dataset in (mapped, plain)]
print("mmap=True,  last document:", mapped_says)
print("mmap=False, last document:", short, "read after", before)
print("get(1, 8, 5) of a document of 10 tokens:", *beyond)
good = mapped_says.startswith("ValueError") and len(short) == 10 and short[:5] == last[:5] and short != last
sys.exit(not (good and beyond == [[108, 109, 200, 201, 202]] * 2))
PY
"$work/venv/bin/python" -W ignore "$work/write.py" "$work/x"
"$work/venv/bin/python" -W ignore "$work/read.py" "$work/x"
