#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, CPU; small random Ministral.
# Expected: a model whose layer_types are all full_attention, with sliding_window null, computes full attention, as Mistral does with a null window.
# Seen: forward builds the mask of the sliding layers, which the model does not have, and ends with "Could not find a `sliding_window` argument";
#   with any window set it runs. MistralForCausalLM with sliding_window null runs.
# Why it matters: the natural way to say "no window" for a long-context continuation cannot even be loaded and run; a window beyond the
#   context has to be written instead.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 numpy==2.4.6
cat > "$work/window.py" <<'PY'
import sys

import torch
from transformers import MinistralConfig, MinistralForCausalLM, MistralConfig, MistralForCausalLM

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
}


def runs(model, config, **settings):
    try:
        model(config(**SMALL, **settings))(torch.arange(10)[None])
    except ValueError as error:
        return str(error)
    return "runs"


full = {"layer_types": ["full_attention"] * 2}
found = {
    "ministral, all full, no window": runs(MinistralForCausalLM, MinistralConfig, sliding_window=None, **full),
    "ministral, all full, a window of 64": runs(MinistralForCausalLM, MinistralConfig, sliding_window=64, **full),
    "mistral, no window": runs(MistralForCausalLM, MistralConfig, sliding_window=None),
}
for name, result in found.items():
    print(f"{name}: {result}")
first, *others = found.values()
sys.exit(not ("sliding_window" in first and others == ["runs", "runs"]))
PY
"$work/venv/bin/python" -W ignore "$work/window.py" 2>/dev/null
