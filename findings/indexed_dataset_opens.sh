#!/usr/bin/env bash
# megatron-core 0.16.1, torch 2.13.0, numpy 2.4.6, CPU.
# Expected: IndexedDataset(mmap=False), what --no-mmap-bin-files asks for, keeps the .bin open and reads from it; with mmap=True a data set costs two handles.
# Seen: without the map each item opens the .bin anew (200 items: 200 opens), and nothing is kept open but the map of the .idx. With it a data set holds three handles:
#   the .idx is opened twice, once for its header.
# Why it matters: a blend of 350 data sets does not open under `ulimit -n 1024`; the option that avoids it sends an open to the metadata server of a shared file system for
#   every sequence that is read, on every rank.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6
cat > "$work/read.py" <<'PY'
import os
import sys

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

ITEMS = 200
prefix = sys.argv[1]
builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
for _ in range(ITEMS):
    builder.add_document(torch.arange(512, dtype=torch.int32), [512])
builder.finalize(prefix + ".idx")

opened = []
sys.addaudithook(lambda event, of: opened.append(str(of[0])) if event == "open" and str(of[0]).startswith(prefix) else None)
found = {}
for mapped in (True, False):
    before = len(os.listdir("/proc/self/fd"))
    dataset = IndexedDataset(prefix, mmap=mapped)
    held = len(os.listdir("/proc/self/fd")) - before
    opened.clear()
    assert all(int(dataset[item][-1]) == 511 for item in range(ITEMS))
    found[mapped] = held, len(opened)
    print(f"mmap={mapped}: {held} handles held, {len(opened)} opens for {ITEMS} items")
    del dataset
sys.exit(found != {True: (3, 0), False: (1, ITEMS)})
PY
"$work/venv/bin/python" -W ignore "$work/read.py" "$work/x" 2> "$work/warnings" || { cat "$work/warnings"; exit 1; }
