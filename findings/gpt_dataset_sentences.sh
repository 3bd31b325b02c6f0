#!/usr/bin/env bash
# megatron-core 0.16.1, torch 2.13.0, numpy 2.4.6, CPU.
# Expected: GPTDataset shuffles documents (its index is called document_index) and reads each from its beginning to its end.
# Seen: of a set whose documents have several sequences, as preprocess_data.py --split-sentences and any multimodal set have,
#   document_index has an entry per sequence: the sentences of a document are shuffled among those of all others, and rows join
#   sentences that never followed each other. The borders of documents in the .idx are not read, and nothing is said.
# Why it matters: such sets exist, made for BERT and T5; a GPT trained on one learns no context beyond a sentence.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q megatron-core==0.16.1 torch==2.13.0 numpy==2.4.6
cat > "$work/read.py" <<'PY'
import sys

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

NUM_DOCUMENTS, NUM_SENTENCES, LENGTH = 20, 5, 8
prefix = sys.argv[1]
builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
for document in range(NUM_DOCUMENTS):  # every token says which document it is of
    builder.add_document(torch.full((NUM_SENTENCES * LENGTH,), document), [LENGTH] * NUM_SENTENCES)
builder.finalize(prefix + ".idx")


class Tokenizer:
    vocab_size, eod, pad, unique_identifiers = 100, 99, -1, {"name": "none"}


config = GPTDatasetConfig(
    random_seed=1, sequence_length=NUM_SENTENCES * LENGTH, split="1,0,0", path_to_cache=prefix + "-cache", tokenizer=Tokenizer(),
    reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
)
low = IndexedDataset(prefix)
dataset = GPTDataset(low, prefix, np.arange(len(low), dtype=np.int32), None, Split.train, config)
documents = [np.unique(dataset[row]["tokens"]).tolist() for row in range(len(dataset))]
print("documents in the .idx:", len(low.document_indices) - 1, "- entries of document_index:", len(dataset.document_index))
print("documents that the first rows, as long as one document, are of:", documents[:4])
torn = sum(len(found) > 2 for found in documents)
print("rows with pieces of three documents or more:", torn, "of", len(documents))
sys.exit(not (len(dataset.document_index) == NUM_DOCUMENTS * NUM_SENTENCES and torn > len(documents) // 2))
PY
"$work/venv/bin/python" -W ignore "$work/read.py" "$work/x" 2> "$work/warnings" || { cat "$work/warnings"; exit 1; }
