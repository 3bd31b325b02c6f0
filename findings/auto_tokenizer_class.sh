#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3.
# Expected: `"tokenizer_class": "PreTrainedTokenizerFast"` in tokenizer_config.json makes AutoTokenizer load tokenizer.json as
#   it stands, whatever the config.json beside it.
# Seen: beside a config.json of model_type qwen2 (or phi3, nemotron and some 40 others) the key is ignored, and the type's class
#   builds its own normalizer and pre-tokenizer around the file's vocabulary: other ids, no word. Beside qwen3 the key holds.
#   Under qwen2 it holds too as soon as the file has any `auto_map`, even one whose code does not exist and is never run.
# Why it matters: a fine-tuned qwen2 with a tokenizer of its own is read with another one, and no class name helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/load.py" <<'PY'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

bare = Tokenizer(models.BPE({"a": 0, "1": 1, "2": 2, "12": 3}, [("1", "2")]))
bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
seen = {}
for model_type in ("qwen2", "qwen3"):
    for auto_map in (False, True):
        folder = Path(sys.argv[1]) / f"{model_type}{auto_map}"
        folder.mkdir()
        bare.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        values = {"tokenizer_class": "PreTrainedTokenizerFast"}
        values |= {"auto_map": {"AutoTokenizer": [None, "no_such_file.Class"]}} if auto_map else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
        found = transformers.AutoTokenizer.from_pretrained(folder)("12")["input_ids"]
        seen[model_type, auto_map] = found == bare.encode("12").ids
print(transformers.__version__, tokenizers.__version__, "ids as the file gives them, by type and auto_map:", seen)
sys.exit(list(seen.values()) != [False, True, True, True])
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
"$work/venv/bin/python" "$work/load.py" "$work"
