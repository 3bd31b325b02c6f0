#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0.
# Expected: AutoTokenizer.from_pretrained on a folder of Whisper that has weights and config.json but no tokenizer file raises
#   an error that names the missing file.
# Seen: a WhisperTokenizer of one entry, without a word: every text is id 0, and every transcript decodes to the empty text.
# Why it matters: as a judge of speech such a folder hears nothing, and each word of a reference counts as deleted.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/load.py" <<'PY'
import sys

import transformers

shape = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}
transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(d_model=16, **shape)).save_pretrained("judge")
tokenizer = transformers.AutoTokenizer.from_pretrained("judge")
seen = len(tokenizer), set(tokenizer("hello").input_ids), tokenizer.decode([50, 51, 52])
print(transformers.__version__, type(tokenizer).__name__, "entries, ids of a text, text of ids:", seen)
sys.exit(seen != (1, {0}, ""))
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 torch==2.13.0 numpy
cd "$work"
venv/bin/python load.py 2> /dev/null
