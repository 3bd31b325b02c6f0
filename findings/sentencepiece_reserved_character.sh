#!/usr/bin/env bash
# sentencepiece 0.2.3.
# Expected: a line with the character U+2585 (a block element, as in bars of progress) is a line to train on like any other.
# Seen: every line that has one is passed over whole, at minloglevel=2 without a word: the words of those lines fall apart
#   into single characters and bytes. Inside the trainer the character stands for the unknown.
# Why it matters: one such character in a document costs all of its text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/train.py" <<'PY'
import io
import sys

import sentencepiece


def pieces(character):
    model = io.BytesIO()
    lines = [f"zyxwv{character} zyxwv zyxwv"] * 50 + ["hello world one two"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
    )
    return len(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("zyxwv"))


seen = pieces("\u2584"), pieces("\u2585")
print(sentencepiece.__version__, "pieces of the word beside U+2584 and beside U+2585:", seen)
sys.exit(not (seen[0] == 1 and seen[1] > 4))
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q sentencepiece==0.2.3
"$work/venv/bin/python" "$work/train.py"
