#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3.
# Expected: with split_special_tokens=True the text "</s>" is tokenised as text, never as the special token.
# Seen: a Unigram tokenizer whose vocabulary has "</s>" (as those converted from sentencepiece have) gives its id all the
#   same: added tokens are skipped, and then the model finds the entry by itself. A BPE without such a merge does split it.
# Why it matters: untrusted text can end a turn although the option that is to prevent it is set.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/split.py" <<'PY'
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

letters = [*"<>/sax "]
unigram = models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in letters)], unk_id=0)
bpe = models.BPE({piece: number for number, piece in enumerate(["<unk>", "</s>", *letters])}, [])
seen = {}
for name, model in (("unigram", unigram), ("bpe", bpe)):
    backend = Tokenizer(model)
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    seen[name] = tokenizer.eos_token_id in tokenizer("a </s> x", split_special_tokens=True)["input_ids"]
print(transformers.__version__, tokenizers.__version__, "the text became the special token:", seen)
sys.exit(seen != {"unigram": True, "bpe": False})
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
"$work/venv/bin/python" "$work/split.py"
